//! The accounts of all addresses that are here or were lately.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::account::{AccountLimits, ClientAccount, Shared};
use super::address::ClientAddress;
use super::meters::ClientMeters;
use super::pressure::{HubShare, Pressure};

/// Addresses known at once, of some 500 bytes each. While all of them have connections or debts,
/// new addresses share one account.
const MOST_ACCOUNTS: usize = 65_536;
/// A table smaller than this is not swept.
const SWEEP_FROM: usize = 1_024;
/// Between two looks at a table that is full: a look takes some milliseconds.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

/// See the module's text.
pub struct Accounts {
    shared: Arc<Shared>,
    table: Mutex<Table>,
}

struct Table {
    accounts: HashMap<ClientAddress, Arc<ClientAccount>>,
    /// At how many accounts those that are idle are looked for next.
    sweep_at: usize,
    swept: Instant,
    /// Of the addresses that found no place.
    crowd: Arc<ClientAccount>,
}

impl Accounts {
    pub fn new(limits: AccountLimits, share: HubShare) -> Self {
        let now = Instant::now();
        let meters = Arc::<ClientMeters>::default();
        let pressure = Pressure::new(share, now);
        let unread_bytes = AtomicUsize::new(0);
        let shared = Arc::new(Shared { limits, meters, pressure, unread_bytes });
        let crowd = Arc::new(ClientAccount::new(shared.clone(), false, now));
        let table = Table { accounts: HashMap::new(), sweep_at: SWEEP_FROM, swept: now, crowd };
        Self { shared, table: Mutex::new(table) }
    }

    /// The account of a client, made where there is none.
    pub fn of(&self, peer: IpAddr) -> Arc<ClientAccount> {
        self.of_at(peer, Instant::now())
    }

    fn of_at(&self, peer: IpAddr, now: Instant) -> Arc<ClientAccount> {
        let address = ClientAddress::from(peer);
        let mut table = self.table.lock();
        if let Some(known) = table.accounts.get(&address) {
            return known.clone();
        }
        let full = table.accounts.len() >= MOST_ACCOUNTS;
        let due = now.saturating_duration_since(table.swept) >= BETWEEN_SWEEPS;
        if table.accounts.len() >= table.sweep_at && (!full || due) {
            table.accounts.retain(|_, account| !account.is_idle(now));
            table.swept = now;
            // Twice what is left, so that each new address pays for looking at two.
            let next = (table.accounts.len() * 2).max(SWEEP_FROM);
            table.sweep_at = next.min(MOST_ACCOUNTS);
        }
        let exempt = self.shared.limits.exempt_loopback && address.is_loopback();
        if table.accounts.len() >= MOST_ACCOUNTS && !exempt {
            return table.crowd.clone();
        }
        let account = Arc::new(ClientAccount::new(self.shared.clone(), exempt, now));
        table.accounts.insert(address, account.clone());
        account
    }

    pub fn limits(&self) -> &AccountLimits {
        &self.shared.limits
    }

    pub fn meters(&self) -> &Arc<ClientMeters> {
        &self.shared.meters
    }

    /// Addresses known now.
    pub fn len(&self) -> usize {
        self.table.lock().accounts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What prices are multiplied by now.
    pub fn price_factor(&self) -> u64 {
        self.shared.pressure.factor(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::super::prices::Work;
    use super::*;

    fn peer(number: usize) -> IpAddr {
        IpAddr::from((10 << 24 | number as u32).to_be_bytes())
    }

    #[test]
    fn addresses_that_hold_and_owe_nothing_are_forgotten_and_others_are_not() {
        let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
        let now = Instant::now();
        let held = accounts.of_at(peer(1), now);
        accounts.of_at(peer(2), now).spend_at(Work::Request, 1, now);
        for number in 10..1_000_000 {
            accounts.of_at(peer(number), now);
        }
        assert!(accounts.len() <= SWEEP_FROM + 1, "{}", accounts.len());
        assert!(Arc::ptr_eq(&held, &accounts.of_at(peer(1), now)));
        assert!(accounts.table.lock().accounts.contains_key(&peer(2).into()), "it owes something");
        let later = now + Duration::from_secs(60);
        for number in 10..3_000 {
            accounts.of_at(peer(number), later);
        }
        assert!(!accounts.table.lock().accounts.contains_key(&peer(2).into()), "it has paid");
    }

    #[test]
    fn addresses_beyond_the_table_share_one_account() {
        let accounts = Accounts::new(AccountLimits::default(), HubShare::of_shards(1));
        let held: Vec<_> = (0..MOST_ACCOUNTS).map(|number| accounts.of(peer(number))).collect();
        let (one, two) = (accounts.of(peer(MOST_ACCOUNTS)), accounts.of(peer(MOST_ACCOUNTS + 1)));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(accounts.len(), MOST_ACCOUNTS);
        drop(held);
        let later = Instant::now() + BETWEEN_SWEEPS;
        assert!(!Arc::ptr_eq(&one, &accounts.of_at(peer(MOST_ACCOUNTS + 2), later)));
    }
}
