//! Connections above the limit of their address that are kept until they are refused in words.

use std::rc::Rc;

use spreadly_subscriptions::Executor;

use super::routes::Http;

/// Connections of a shard that are kept only to be refused in words; others are closed at once.
const MOST_REFUSING: usize = 64;

/// A connection that is kept only to be refused.
pub struct Refusing<E: Executor>(Rc<Http<E>>);

impl<E: Executor> Refusing<E> {
    /// `None`: as many are kept as may.
    pub fn begin(http: &Rc<Http<E>>) -> Option<Self> {
        let current = http.refusing.get();
        if current >= MOST_REFUSING {
            return None;
        }
        http.refusing.set(current + 1);
        Some(Self(http.clone()))
    }
}

impl<E: Executor> Drop for Refusing<E> {
    fn drop(&mut self) {
        self.0.refusing.set(self.0.refusing.get() - 1);
    }
}
