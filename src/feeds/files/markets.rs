//! Which markets are defined, as far as the feed knows: a line waits for the definition of its
//! market, which may be in another file or come by another feed.

use std::collections::HashSet;
use std::sync::Arc;

use crate::market::admission::MOST_MARKETS;
use crate::market::event::{Named, named_market};

/// Whether the hub knows a market.
pub type IsDefined = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Where the name of a market is at most, in bytes, for the beginning of its line to be remembered:
/// beyond it no two lines begin alike.
const NEAR_FRONT: usize = 128;

/// See the module's text.
pub(super) struct Markets {
    is_defined: IsDefined,
    known: HashSet<Box<str>>,
    /// How the last line began that names a known market, up to the end of the name.
    beginning: Vec<u8>,
    /// Some became known since this was last asked.
    has_news: bool,
}

/// What the lines of one file wait for.
pub(super) struct Waits<'a> {
    pub(super) markets: &'a mut Markets,
    /// Markets that they do not wait for again.
    pub(super) in_vain: &'a [Box<str>],
}

impl Markets {
    pub(super) fn new(is_defined: IsDefined) -> Self {
        Self { is_defined, known: HashSet::new(), beginning: Vec::new(), has_news: false }
    }

    /// Takes the next line of a file, or gives the market that it has to wait for.
    pub(super) fn admit(&mut self, line: &[u8]) -> Result<(), Box<str>> {
        // As most lines begin: to look for the market costs a fifth of reading one.
        if !self.beginning.is_empty() && line.starts_with(&self.beginning) {
            return Ok(());
        }
        match named_market(line) {
            None => Ok(()),
            Some(Named::Defined(market)) => {
                self.learn(market);
                Ok(())
            }
            Some(Named::Used(market)) if self.knows(market) => {
                let name_at = market.as_ptr().addr() - line.as_ptr().addr();
                self.beginning.clear();
                if name_at < NEAR_FRONT {
                    // With the quote that ends the name.
                    self.beginning.extend(&line[..=name_at + market.len()]);
                }
                Ok(())
            }
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
