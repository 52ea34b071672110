//! The real hub as a process, in a folder of its own, at a port that stays its own.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::PATIENCE;
use super::{ReservedPort, http};

/// A debug build on a loaded machine; a hub that needs longer hangs.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

pub struct Hub {
    /// `None` between a kill and a restart.
    child: Option<Child>,
    folder: TempDir,
    settings: Vec<String>,
    starter: Vec<&'static str>,
    port: ReservedPort,
    admin_port: ReservedPort,
    listening: SocketAddr,
    admin: SocketAddr,
}

impl Hub {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// `settings` are `section.key=value`, as after `--set`.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_by(&[], settings)
    }

    /// `starter` is a program, with its arguments, that becomes the hub.
    pub fn start_by(starter: &[&'static str], settings: &[&str]) -> Self {
        let mut hub = Self::prepared(starter, settings);
        hub.launch();
        hub
    }

    /// One that can't use its log yet: back once both ports listen, before it is ready.
    pub async fn start_waiting(settings: &[&str]) -> Self {
        let mut hub = Self::prepared(&[], settings);
        hub.spawn();
        let began = Instant::now();
        loop {
            let log = hub.log();
            let said = |key: &str| log.split_once(key)?.1.split_whitespace().next()?.parse().ok();
            if let Some((public, admin)) = said("public=").zip(said("admin=")) {
                (hub.listening, hub.admin) = (public, admin);
                return hub;
            }
            assert!(began.elapsed() < START_DEADLINE, "it does not listen:\n{log}");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    fn prepared(starter: &[&'static str], settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("feeds")).unwrap();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            child: None,
            folder,
            settings: settings.iter().map(|one| (*one).to_owned()).collect(),
            starter: starter.to_vec(),
            port: ReservedPort::new(),
            admin_port: ReservedPort::new(),
            listening: nowhere,
            admin: nowhere,
        }
    }

    /// Starts the process and does not wait for it.
    fn spawn(&mut self) {
        assert!(self.child.is_none(), "the hub runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("hub.log"))
            .unwrap();
        let hub = env!("CARGO_BIN_EXE_spreadly");
        let mut words = self.starter.iter().copied().chain([hub]);
        let mut command = Command::new(words.next().unwrap_or(hub));
        command
            .args(words)
            .current_dir(self.folder.path())
            .args(["serve", "--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin_port)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SPREADLY__") {
                command.env_remove(name);
            }
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn launch(&mut self) {
        self.spawn();
        let stdout = self.child.as_mut().and_then(|child| child.stdout.take()).unwrap();

        // On a thread of its own: a read from a pipe has no deadline. It reads on after the
        // first line, so that a hub that prints more is never stopped by a full pipe.
        let (said, heard) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = said.try_send(line);
            }
        });
        let line = heard.recv_timeout(START_DEADLINE).unwrap_or_else(|_| {
            panic!("the hub did not say where it listens; its log:\n{}", self.log())
        });
        let ready: Value = serde_json::from_str(&line).unwrap();
        let address = |key: &str| ready[key].as_str().unwrap().parse().unwrap();
        self.listening = address("listening");
        self.admin = address("admin");
    }

    pub fn address(&self) -> SocketAddr {
        self.listening
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Of the WebSocket.
    pub fn url(&self) -> String {
        format!("ws://{}/graphql", self.listening)
    }

    /// Of GraphQL over HTTP.
    pub fn http_url(&self) -> String {
        format!("http://{}/graphql", self.listening)
    }

    /// Where it runs: `feeds/` and `data/` are in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn feed(&self, file: &str) -> PathBuf {
        self.folder.path().join("feeds").join(file)
    }

    /// Appends whole lines to a file of the feed's folder, in one write.
    pub fn append_lines(&self, file: &str, lines: &[impl AsRef<str>]) {
        append(&self.feed(file), lines);
    }

    /// What the hub has logged since its folder was made.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("hub.log")).unwrap_or_default()
    }

    /// Ends the process with no chance to do anything.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the hub runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to drain, and does not wait.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Stops the process (`-STOP`), or lets it go on (`-CONT`).
    pub fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("the hub runs");
        let done = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(done.unwrap().success());
    }

    /// Asks it to drain, and gives its exit status.
    pub fn sigterm(&mut self) -> ExitStatus {
        self.terminate();
        self.exited()
    }

    /// Waits until it has ended by itself.
    pub fn exited(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the hub runs");
        let (over, ended) = mpsc::sync_channel(1);
        let id = child.id();
        std::thread::spawn(move || over.send(child.wait()));
        match ended.recv_timeout(STOP_DEADLINE) {
            Ok(status) => status.unwrap(),
            Err(_) => {
                let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
                panic!("the hub did not stop; its log:\n{}", self.log());
            }
        }
    }

    /// Starts it and ends it this long after, ready or not.
    pub fn kill9_while_starting(&mut self, after: Duration) {
        self.spawn();
        std::thread::sleep(after);
        self.kill9();
    }

    /// Status and body of a page of the admin port.
    pub fn admin_page(&self, path: &str) -> (u16, String) {
        let answer = http::send(self.admin, &[&format!("GET {path}")], b"");
        (answer.status, answer.body)
    }

    /// The `data` of a query by POST.
    pub fn query(&self, query: &str) -> Value {
        let answer = http::post(self.listening, &json!({ "query": query }));
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        assert!(answer["errors"].is_null(), "{answer}");
        answer["data"].clone()
    }

    /// What was published to a generic topic, as the log has it.
    pub fn published(&self, topic: &str) -> Vec<Value> {
        let (all, _) = self.events(topic, "data");
        all.into_iter().map(|event| event["data"].clone()).collect()
    }

    /// The sequence of each event of a generic topic with what it says, and the cursor after them.
    pub fn positions(&self, topic: &str) -> (Vec<Value>, Value) {
        self.events(topic, "sequence data")
    }

    /// Of a generic topic, page by page.
    fn events(&self, topic: &str, fields: &str) -> (Vec<Value>, Value) {
        let (mut all, mut after) = (Vec::new(), Value::Null);
        loop {
            let query = format!(
                r#"{{ events(topic: "{topic}", first: 1000, after: {after})
                    {{ nodes {{ {fields} }} pageInfo {{ hasNextPage endCursor }} }} }}"#
            );
            let page = self.query(&query)["events"].clone();
            all.extend(page["nodes"].as_array().unwrap().iter().cloned());
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                return (all, after);
            }
        }
    }

    /// How a feed is, as clients see it.
    pub fn feed_status(&self, name: &str) -> Value {
        let query = "{ feeds { name state reason eventsTotal refusedTotal lag
            lastRefusal { source place reason } } }";
        let feeds = self.query(query)["feeds"].as_array().unwrap().clone();
        feeds.into_iter().find(|feed| feed["name"] == name).unwrap_or_default()
    }

    /// Looks at a feed until it is as awaited.
    pub async fn until_feed(
        &self,
        name: &str,
        what: &str,
        awaited: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = Instant::now();
        loop {
            let feed = self.feed_status(name);
            if awaited(&feed) {
                return feed;
            }
            assert!(began.elapsed() < PATIENCE, "{what} never came: {feed}");
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// A topic's events in the log's order, as they were written, read beside the hub.
    pub fn logged(&self, store: &Path, topic: &str) -> Vec<String> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let store = rusqlite::Connection::open_with_flags(store, flags).unwrap();
        let query = "SELECT body FROM events WHERE topic = ?1 ORDER BY sequence";
        let mut rows = store.prepare(query).unwrap();
        let rows = rows.query_map([topic], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// On the same folder and the same port, so that clients find it again.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        self.launch();
    }
}

/// Appends whole lines to a file, in one write.
pub fn append(file: &Path, lines: &[impl AsRef<str>]) {
    let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the hub's log:\n{}", self.log());
        }
    }
}
