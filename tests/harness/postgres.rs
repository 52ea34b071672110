//! A real PostgreSQL in a folder of its own, on a port the kernel chose; it ends with the test.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::ReservedPort;
use super::client::PATIENCE;

pub(super) const BETWEEN_TRIES: Duration = Duration::from_millis(20);

pub struct Postgres {
    folder: TempDir,
    port: ReservedPort,
    /// Where it may move to.
    spare_port: ReservedPort,
    /// Of its command line, beside what all have.
    options: &'static str,
}

/// As a copy of the database brought back from before the third row.
pub const BACK_TO_TWO_ROWS: &str = "
    DELETE FROM events USING spreadly_positions AS own
        WHERE events.id = own.id AND own.position > 2;
    DELETE FROM spreadly_runs WHERE first > 2;
    UPDATE spreadly_runs SET ids = ids[:3 - first];
    UPDATE spreadly_numbering SET last = 2;";

impl Postgres {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// One that lets writers prepare transactions.
    pub fn start_for_two_phases() -> Self {
        Self::start_with("-c max_prepared_transactions=20")
    }

    fn start_with(options: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        give_to_server_user(folder.path());
        let (port, spare_port) = (ReservedPort::new(), ReservedPort::new());
        let own = Self { folder, port, spare_port, options };
        run(as_its_user("initdb").arg("-D").arg(own.data()).args([
            "-A",
            "trust",
            "-U",
            "spreadly",
            "-E",
            "UTF8",
            "--no-sync",
        ]));
        own.launch();
        own
    }

    pub(super) fn port(&self) -> &ReservedPort {
        &self.port
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Tried until it is up: after a kill its children may still hold its memory.
    fn launch(&self) {
        let began = Instant::now();
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c max_connections=60 {}",
            self.port,
            self.folder.path().display(),
            self.options
        );
        loop {
            let mut start = as_its_user("pg_ctl");
            start.arg("-D").arg(self.data()).args(["-w", "-t", "20", "-o", &options, "-l"]);
            start.arg(self.folder.path().join("log")).arg("start");
            if start.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "PostgreSQL does not start:\n{}", self.log());
            std::thread::sleep(BETWEEN_TRIES);
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        format!("postgres://spreadly@127.0.0.1:{}/postgres", self.port)
    }

    /// With both of its addresses.
    pub fn url_with_spare(&self) -> String {
        let Self { port, spare_port, .. } = self;
        let hosts = format!("127.0.0.1:{port},127.0.0.1:{spare_port}");
        format!("postgres://spreadly@{hosts}/postgres?target_session_attrs=read-write")
    }

    fn process(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        file.lines().next().map(str::to_owned)
    }

    /// The postmaster, with no chance to do anything; its children notice and end.
    pub fn kill9(&self) {
        run(Command::new("kill").args(["-KILL", &self.process().unwrap()]));
    }

    pub fn restart(&self) {
        self.launch();
    }

    /// Ends it and starts it at its other address: a failover, as far as its clients can see.
    pub fn fail_over(&mut self) {
        self.stop();
        std::mem::swap(&mut self.port, &mut self.spare_port);
        self.launch();
    }

    /// Puts a dump of it into another one, which is empty.
    pub fn copy_to(&self, other: &Self) {
        let mut dump = as_its_user("pg_dump");
        let dump = dump.args(["--no-owner", "--dbname", &self.url()]).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let mut restore = as_its_user("psql");
        restore.args(["-qX", "-v", "ON_ERROR_STOP=1", "--dbname", &other.url()]);
        let mut restore =
            restore.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("psql runs");
        restore.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
        assert!(restore.wait().unwrap().success());
    }

    /// Stops every process of it, or lets them go on.
    pub fn signal_all(&self, signal: &str) {
        let postmaster = self.process().unwrap();
        let children = Command::new("pgrep").args(["-P", &postmaster]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        for process in children.lines().chain([&*postmaster]) {
            // A child may have ended meanwhile.
            drop(Command::new("kill").args([signal, process]).status());
        }
    }

    fn stop(&self) {
        let mut stop = as_its_user("pg_ctl");
        stop.arg("-D").arg(self.data()).args(["-w", "-m", "immediate", "stop"]);
        drop(stop.stdout(Stdio::null()).stderr(Stdio::null()).status());
    }

    /// A connection; `None` while it is down.
    pub async fn try_client(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.ok()?;
        tokio::spawn(async move { drop(connection.await) });
        Some(client)
    }

    pub async fn client(&self) -> Client {
        let began = Instant::now();
        loop {
            if let Some(client) = self.try_client().await {
                return client;
            }
            assert!(began.elapsed() < PATIENCE, "no connection:\n{}", self.log());
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal_all("-CONT");
        self.stop();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Servers refuse to run as root.
pub(super) fn give_to_server_user(folder: &Path) {
    if is_root() {
        run(Command::new("chown").arg("-R").arg("postgres").arg(folder));
    }
}

/// One of its programs, as the user that may run it.
fn as_its_user(program: &str) -> Command {
    as_server_user(&binary(program))
}

pub(super) fn as_server_user(path: &Path) -> Command {
    // It may not be allowed to look at where the tests run.
    if !is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(path).current_dir("/");
    command
}

/// Debian keeps them out of the PATH, by version.
fn binary(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|one| one.path().join("bin").join(program)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| Path::new(program).to_owned())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
