//! The attackers, in a process of their own: hundreds of sockets on one thread, which look at what
//! arrives only as far as the report counts it. They leave when their standard input ends, so they
//! never outlive the tester.

mod counts;
mod documents;
mod requests;
mod unread;

use super::documents as texts;
use super::spec::{Attack, Spec};
use crate::process;
use clap::Args;
pub use counts::AttackReport;
use counts::Counts;
use std::io::Read;
use std::rc::Rc;
use std::thread;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::LocalSet;

/// Between two new sockets: a listen backlog of 128 is never full because of us.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);
/// After a close, a refusal or an error that names no time.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// For those that never read, to look at how their sockets ended.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The other process of `flood`; not for people.
#[derive(Debug, Args)]
pub struct ClientsArgs {
    #[arg(long)]
    spec: String,
}

/// What each client has.
#[derive(Clone)]
struct Client {
    spec: Rc<Spec>,
    counts: Rc<Counts>,
    number: usize,
    stopped: watch::Receiver<bool>,
}

/// # Errors
/// When the sockets run out or the report can't be written.
pub fn run(args: &ClientsArgs) -> Result<(), String> {
    let spec: Spec = serde_json::from_str(&args.spec).map_err(|error| error.to_string())?;
    process::allow_sockets(spec.sockets)?;
    let (stop, stopped) = watch::channel(false);
    // Not joined: it may wait for ever.
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(true);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let counts = Rc::new(Counts::default());
    let spec = Rc::new(spec);
    LocalSet::new().block_on(&runtime, attack(&spec, &counts, stopped));
    let report = counts.report(process::cpu_micros(std::process::id()).unwrap_or(0));
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

async fn attack(spec: &Rc<Spec>, counts: &Rc<Counts>, mut stopped: watch::Receiver<bool>) {
    let mut clients = Vec::with_capacity(spec.sockets);
    for number in 0..spec.sockets {
        if *stopped.borrow() {
            break;
        }
        let client = Client {
            spec: Rc::clone(spec),
            counts: Rc::clone(counts),
            number,
            stopped: stopped.clone(),
        };
        clients.push(tokio::task::spawn_local(client.run()));
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
    let _ = stopped.wait_for(|stopped| *stopped).await;
    let leaving = async {
        for client in clients {
            let _ = client.await;
        }
    };
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, leaving).await;
}

impl Client {
    async fn run(self) {
        let mut stopped = self.stopped.clone();
        let working = async {
            match self.spec.attack {
                Attack::Documents => documents::subscribe(&self, documents::Loop::Keep).await,
                Attack::Churn => documents::subscribe(&self, documents::Loop::Churn).await,
                Attack::Snapshots if self.number.is_multiple_of(2) => {
                    documents::subscribe(&self, documents::Loop::Queries).await;
                }
                Attack::Snapshots => documents::subscribe(&self, documents::Loop::Deep).await,
                Attack::Queries | Attack::Topics => requests::ask(&self).await,
                Attack::Silent | Attack::Resumes => unread::sockets(&self).await,
                Attack::Sse | Attack::Replies => unread::replies(&self).await,
                Attack::HalfOpen => unread::half_open(&self).await,
            }
        };
        // Those that never read wait for the end themselves, and then look at what they were sent.
        match self.spec.attack {
            Attack::Silent | Attack::Resumes | Attack::Sse | Attack::Replies => working.await,
            _ => tokio::select! {
                () = working => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            },
        }
    }
}
