//! A real Redis in a folder of its own, on a port the kernel chose, alone, as a cluster or watched
//! by sentinels; it ends with the test.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ReservedPort;
use super::client::PATIENCE;

const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// What sentinels call the servers they watch.
const SERVICE: &str = "spreadly";

pub struct Redis {
    /// `None` between a kill and a restart.
    child: Option<Child>,
    folder: TempDir,
    port: ReservedPort,
    /// Of a cluster's nodes among themselves.
    _bus: ReservedPort,
    arguments: Vec<String>,
}

/// And the one that is 10,000 above, where a cluster's node listens to the others.
fn free_ports() -> (ReservedPort, ReservedPort) {
    loop {
        let port = ReservedPort::new();
        let above = port.number().checked_add(10_000).map(ReservedPort::bind);
        if let Some(Ok(bus)) = above {
            return (port, bus);
        }
    }
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// `arguments` as on the command line of `redis-server`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let (port, bus) = free_ports();
        let mut own = Self { child: None, folder, port, _bus: bus, arguments };
        own.restart();
        own
    }

    /// Starts it at the same port with nothing in it.
    pub fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(&self.arguments).args(["--port", &self.port.to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(self.folder.path());
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn();
        self.child =
            Some(child.expect("redis-server is not installed: see tests/setup/services.sh"));
        self.until("PONG", &["ping"]);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it with no chance to do anything.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// What it answers, as `redis-cli` prints it.
    pub fn ask(&self, question: &[&str]) -> String {
        let port = self.port.to_string();
        // Follows a cluster's redirections.
        let mut asking = Command::new("redis-cli");
        asking.args(["-c", "-p", &port]).args(question);
        if let [.., name, password] = &self.arguments[..]
            && name == "--requirepass"
        {
            asking.env("REDISCLI_AUTH", password);
        }
        let asked = asking.output();
        let asked = asked.expect("redis-cli is not installed: see tests/setup/services.sh");
        String::from_utf8_lossy(&asked.stdout).trim().to_owned()
    }

    /// Asks until that is the answer.
    pub fn until(&self, expected: &str, question: &[&str]) {
        let began = Instant::now();
        loop {
            let answer = self.ask(question);
            if answer == expected {
                return;
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "{question:?}: {answer}, not {expected}:\n{log}");
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// A field of what is kept of a market: of its `state` or its `recent`.
    pub fn kept(&self, market: &str, what: &str, field: &str) -> String {
        self.ask(&["hget", &format!("spreadly:{{{market}}}:{what}"), field])
    }

    /// Waits until a market's state of this sequence is kept.
    pub fn until_kept(&self, market: &str, sequence: &str) {
        self.until(sequence, &["hget", &format!("spreadly:{{{market}}}:state"), "sequence"]);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Also one that is stopped.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Three masters that share the slots.
pub struct RedisCluster {
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    pub fn start() -> Self {
        let one =
            || Redis::start_with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        let nodes: Vec<_> = (0..3).map(|_| one()).collect();
        let addresses: Vec<_> =
            nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "0", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for node in &nodes {
            let began = Instant::now();
            while !node.ask(&["cluster", "info"]).contains("cluster_state:ok") {
                assert!(began.elapsed() < PATIENCE, "the cluster never came up");
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
        Self { nodes }
    }

    pub fn url(&self) -> String {
        let [one, two, ..] = &self.nodes[..] else { panic!("a cluster has three nodes") };
        format!("redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}", one.port, two.port)
    }
}

/// A master with a replica, and three sentinels that watch them.
pub struct Watched {
    pub master: Redis,
    pub replica: Redis,
    sentinels: Vec<Redis>,
}

impl Watched {
    pub fn start() -> Self {
        let master = Redis::start();
        let port = master.port.to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        let began = Instant::now();
        while !replica.ask(&["info", "replication"]).contains("master_link_status:up") {
            assert!(began.elapsed() < PATIENCE, "the replica never followed");
            std::thread::sleep(BETWEEN_LOOKS);
        }
        let sentinels: Vec<_> = (0..3).map(|_| sentinel(&port)).collect();
        for one in &sentinels {
            let began = Instant::now();
            let known = |what: &str| one.ask(&["sentinel", what, SERVICE]).contains("127.0.0.1");
            while !(known("replicas") && known("sentinels")) {
                assert!(began.elapsed() < PATIENCE, "a sentinel never saw the others");
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
        Self { master, replica, sentinels }
    }

    pub fn url(&self) -> String {
        let [one, rest @ ..] = &self.sentinels[..] else { panic!("there are sentinels") };
        let rest: String = rest.iter().map(|one| format!("&node=127.0.0.1:{}", one.port)).collect();
        format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName={SERVICE}{rest}", one.port)
    }

    /// Waits until the replica is the master.
    pub fn until_failed_over(&self) {
        let began = Instant::now();
        while !self.replica.ask(&["role"]).starts_with("master") {
            assert!(began.elapsed() < PATIENCE, "no failover");
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }
}

fn sentinel(master: &str) -> Redis {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("sentinel.conf");
    let text = format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {SERVICE} 1000\n\
         sentinel failover-timeout {SERVICE} 5000\n"
    );
    std::fs::write(&config, text).unwrap();
    let arguments = vec![config.display().to_string(), "--sentinel".to_owned()];
    let (port, bus) = free_ports();
    let mut own = Redis { child: None, folder, port, _bus: bus, arguments };
    own.restart();
    own
}
