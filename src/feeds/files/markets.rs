//! Which markets are defined, as far as the feed knows: a line waits for the definition of its
//! market, which may be in another file or come by another feed.

use std::collections::HashSet;
use std::sync::Arc;

use crate::market::admission::MOST_MARKETS;
use crate::market::event::{Named, named_market};

/// Whether the hub knows a market.
pub type IsDefined = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// See the module's text.
pub(super) struct Markets {
    is_defined: IsDefined,
    known: HashSet<Box<str>>,
    /// Some became known since this was last asked.
    has_news: bool,
}

impl Markets {
    pub(super) fn new(is_defined: IsDefined) -> Self {
        Self { is_defined, known: HashSet::new(), has_news: false }
    }

    /// Takes the next line of a file, or gives the market that it has to wait for.
    pub(super) fn admit(&mut self, line: &[u8]) -> Result<(), Box<str>> {
        match named_market(line) {
            None => Ok(()),
            Some(Named::Defined(market)) => {
                self.learn(market);
                Ok(())
            }
            Some(Named::Used(market)) if self.knows(market) => Ok(()),
            Some(Named::Used(market)) => Err(market.into()),
        }
    }

    pub(super) fn knows(&mut self, market: &str) -> bool {
        if self.known.contains(market) {
            return true;
        }
        // Beyond the most, the hub refuses further ones.
        let knows = self.known.len() >= MOST_MARKETS || (self.is_defined)(market);
        if knows {
            self.learn(market);
        }
        knows
    }

    fn learn(&mut self, market: &str) {
        if self.known.len() < MOST_MARKETS && !self.known.contains(market) {
            self.known.insert(market.into());
            self.has_news = true;
        }
    }

    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }
}
