//! What `/readyz` says: how far the hub is, and what each of its dependencies lacks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use crate::http::connection_limits::DescriptorReserve;
use crate::ingest::feed_status::FeedStatuses;
use crate::telemetry::admin::Dependency;
use crate::telemetry::metrics::StageNow;

/// What the hub is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Starting,
    /// There is no replica yet, and the shared log can't be used for this reason.
    WaitingForLog(String),
    Running,
    /// Asked to stop, and serves new connections until the balancer has seen it.
    Leaving,
    Draining,
}

impl Stage {
    /// Its label in the metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::Starting | Self::WaitingForLog(_) => "starting",
            Self::Running => "running",
            Self::Leaving => "leaving",
            Self::Draining => "draining",
        }
    }
}

#[derive(Default)]
pub(super) struct Readiness(watch::Sender<Stage>);

impl Readiness {
    pub(super) fn set(&self, stage: Stage) {
        self.0.send_replace(stage);
    }

    /// Returns once the hub waits for its log.
    pub(super) async fn waits_for_log(&self) {
        let mut stage = self.0.subscribe();
        let waits = |stage: &Stage| matches!(stage, Stage::WaitingForLog(_));
        // The sender is ours, so it is never gone.
        drop(stage.wait_for(waits).await);
    }

    fn name(&self) -> &'static str {
        self.0.borrow().name()
    }

    fn row(&self) -> Dependency {
        let stage = self.0.borrow().clone();
        Dependency {
            name: "hub".to_owned(),
            ready: stage == Stage::Running,
            detail: match stage {
                Stage::Leaving => "leaving: new connections are served for server.drain_delay_ms",
                stage => stage.name(),
            }
            .to_owned(),
        }
    }

    fn log_row(&self) -> Option<Dependency> {
        let Stage::WaitingForLog(detail) = self.0.borrow().clone() else { return None };
        Some(Dependency { name: "shared log".to_owned(), ready: false, detail })
    }
}

/// The stage's label in the metrics, at each call.
pub(super) fn stage(readiness: Arc<Readiness>) -> StageNow {
    Box::new(move || readiness.name())
}

/// The rows as they are at each call.
pub(super) fn rows(
    readiness: Arc<Readiness>,
    statuses: FeedStatuses,
    reserve: Arc<DescriptorReserve>,
) -> Box<dyn Fn() -> Vec<Dependency> + Send + Sync> {
    Box::new(move || {
        let open_files = Dependency {
            name: "open files".to_owned(),
            ready: !reserve.exhausted.load(Ordering::Relaxed),
            detail: "new sockets are accepted while there are file descriptors".to_owned(),
        };
        let mut rows = vec![readiness.row(), open_files];
        rows.extend(readiness.log_row());
        rows.extend(statuses.snapshot().into_iter().map(|feed| Dependency {
            name: format!("feed {}", feed.name),
            ready: feed.is_ready,
            detail: feed.reason.unwrap_or_else(|| "live".to_owned()),
        }));
        rows
    })
}
