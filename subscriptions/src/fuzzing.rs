//! A session whose client and connection do anything in any order, checked against a model of
//! which operations are alive. The fuzzer in `fuzz/` and a property test run it. Not part of the
//! engine.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::limits::Limits;
use crate::message::ClientMessage;
use crate::session::{Decision, OperationRef, Session};

/// Small, so that a short input reaches them.
fn limits() -> Limits {
    Limits {
        operations_per_socket: 5,
        pending_operations_per_socket: 3,
        subscribe_rate: 10,
        subscribe_burst: 8,
        ..Limits::default()
    }
}

/// Runs the steps that the bytes encode; the highest bit of the first byte chooses the dialect.
/// Panics if the session breaks a rule.
pub fn fuzz_session(data: &[u8]) {
    let legacy = data.first().is_some_and(|first| first & 0x80 != 0);
    let mut run = Run::new(if legacy { Dialect::LegacyWs } else { Dialect::TransportWs });
    let mut rest = data;
    while let [step, tail @ ..] = rest {
        rest = run.step(*step, tail);
        run.check();
    }
}

struct Run {
    session: Session,
    limits: Limits,
    now: Instant,
    authenticating: bool,
    /// By the client's id: the operation that is alive, and whether it is pending.
    alive: HashMap<String, (OperationRef, bool)>,
    /// Every operation there ever was, ended ones too: results come late.
    executed: Vec<OperationRef>,
}

impl Run {
    fn new(dialect: Dialect) -> Self {
        let (limits, now) = (limits(), Instant::now());
        let mut session = Session::new(&limits, now);
        session.set_dialect(dialect);
        let (authenticating, alive, executed) = (false, HashMap::new(), Vec::new());
        Self { session, limits, now, authenticating, alive, executed }
    }

    /// Runs one step with its arguments from `tail`, and returns the bytes after those.
    fn step<'a>(&mut self, step: u8, tail: &'a [u8]) -> &'a [u8] {
        let (argument, rest) = match tail {
            [argument, rest @ ..] => (*argument, rest),
            [] => (0, tail),
        };
        // Some ids need escapes in JSON.
        let id = ["a", "b", "\\\"", "\\u0000", "é", "a ", "1", "\\\\"][usize::from(argument % 8)];
        let (begin, end) = match self.session.dialect() {
            Dialect::TransportWs => ("subscribe", "complete"),
            Dialect::LegacyWs => ("start", "stop"),
        };
        match step % 10 {
            0 => {
                let (text, rest) = rest.split_at(rest.len().min(usize::from(argument)));
                self.receive(&String::from_utf8_lossy(text));
                return rest;
            }
            1 => self.receive(r#"{"type":"connection_init"}"#),
            2 | 3 => self.receive(&format!(
                r#"{{"type":"{begin}","id":"{id}","payload":{{"query":"{{x}}"}}}}"#
            )),
            4 => self.receive(&format!(r#"{{"type":"{end}","id":"{id}"}}"#)),
            5 if self.authenticating => {
                self.authenticating = false;
                self.session.accept();
            }
            5 => {}
            6 => self.end(argument, |session, operation| session.finish(operation).is_some()),
            7 => {
                self.end(argument, |session, operation| session.refuse(operation, b"[]").is_some())
            }
            8 => self.start_streaming(argument),
            _ => self.now += Duration::from_millis(u64::from(argument) * 10),
        }
        rest
    }

    fn receive(&mut self, text: &str) {
        let decision = self.session.receive(text, &self.limits, self.now);
        let message = self.session.dialect().parse(text);
        match decision {
            Decision::Execute { operation, .. } => {
                let Ok(ClientMessage::Subscribe { id, .. }) = message else {
                    panic!("executed without a subscribe: {text}");
                };
                assert!(!self.executed.contains(&operation), "an `OperationRef` is used once");
                self.executed.push(operation);
                let before = self.alive.insert(id.to_string(), (operation, true));
                assert!(before.is_none(), "{id} was alive");
            }
            Decision::Stop { operation, answer } => {
                assert_eq!(answer.is_some(), self.session.dialect() == Dialect::LegacyWs);
                let Ok(ClientMessage::Complete { id }) = message else {
                    panic!("ended without a complete: {text}");
                };
                let ended = self.alive.remove(&*id).map(|(operation, _)| operation);
                assert_eq!(ended, Some(operation));
            }
            Decision::Authenticate(_) => {
                assert!(matches!(message, Ok(ClientMessage::Init(_))) && self.executed.is_empty());
                self.authenticating = true;
            }
            Decision::Reply(reply) | Decision::Refuse(reply) => {
                assert!(serde_json::from_slice::<serde_json::Value>(&reply).is_ok());
            }
            // A connection would end here. That a session takes further messages is worth knowing.
            Decision::Close { .. } => {}
            Decision::Nothing => {
                if let Ok(ClientMessage::Complete { id }) = message {
                    assert!(!self.alive.contains_key(&*id), "{id} was alive and was not ended");
                }
            }
        }
    }

    fn some(&self, argument: u8) -> Option<OperationRef> {
        self.executed
            .len()
            .checked_sub(1 + usize::from(argument) % self.executed.len().max(1))
            .map(|index| self.executed[index])
    }

    /// A result arrives, for an operation that may have ended long ago.
    fn end(&mut self, argument: u8, act: impl FnOnce(&mut Session, OperationRef) -> bool) {
        let Some(operation) = self.some(argument) else { return };
        let before = self.alive.len();
        self.alive.retain(|_, (one, _)| *one != operation);
        assert_eq!(act(&mut self.session, operation), self.alive.len() < before);
    }

    fn start_streaming(&mut self, argument: u8) {
        let Some(operation) = self.some(argument) else { return };
        let alive = self.alive.iter_mut().find(|(_, (one, _))| *one == operation);
        let expected = alive.map(|(id, (_, pending))| {
            *pending = false;
            serde_json::Value::from(id.as_str()).to_string()
        });
        assert_eq!(self.session.start_streaming(operation).as_deref(), expected.as_deref());
    }

    fn check(&self) {
        assert_eq!(self.session.len(), self.alive.len());
        assert!(self.alive.len() <= self.limits.operations_per_socket);
        let pending = self.alive.values().filter(|(_, pending)| *pending).count();
        assert!(pending <= self.limits.pending_operations_per_socket);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Proves that the steps can reach what the other tests rely on.
    #[test]
    fn the_steps_reach_every_limit_and_late_results() {
        let mut run = Run::new(Dialect::TransportWs);
        let mut go = |bytes: &[u8]| {
            let mut rest = bytes;
            while let [step, tail @ ..] = rest {
                rest = run.step(*step, tail);
                run.check();
            }
            (run.alive.len(), run.executed.len())
        };
        assert_eq!(go(&[1, 0, 5, 0, 2, 0, 2, 1, 2, 2, 2, 3]), (3, 3), "three are pending");
        assert_eq!(go(&[8, 0, 8, 1, 8, 2, 2, 3, 2, 4, 8, 0, 8, 1, 2, 5]), (5, 5), "five are alive");
        assert_eq!(go(&[4, 0, 6, 4, 2, 0, 7, 5]), (5, 6), "late results revive nothing");
        assert_eq!(go(&[7, 0, 6, 0, 2, 0, 2, 5]), (5, 7), "a slot that was free again");
    }

    #[test]
    fn each_seed_of_a_session_keeps_its_rules() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/session");
        let seeds: Vec<_> = std::fs::read_dir(seeds).unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            fuzz_session(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    }

    proptest! {
        #[test]
        fn a_session_keeps_its_rules_for_any_steps_in_any_order(
            legacy in any::<bool>(),
            steps in prop::collection::vec((0u8..10, any::<u8>(), ".{0,8}"), 0..200),
        ) {
            // 131 is the step 1 too.
            let mut data = vec![if legacy { 131 } else { 1 }, 0, 5, 0];
            for (step, argument, text) in steps {
                match step {
                    0 => {
                        data.extend([0, text.len() as u8]);
                        data.extend(text.as_bytes());
                    }
                    _ => data.extend([step, argument]),
                }
            }
            fuzz_session(&data);
        }

        #[test]
        fn a_session_takes_any_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
            fuzz_session(&data);
        }
    }
}
