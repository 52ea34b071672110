//! A real hub in a folder of its own, on ports of its own, for as long as a scenario lasts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(50);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the hub's log, printed when something fails.
const LAST_WORDS: usize = 2000;

pub struct Hub {
    process: Child,
    folder: TempDir,
    pub feeds: PathBuf,
    pub url: String,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// What differs between the hubs of two commands.
#[derive(Debug, Default)]
pub struct Settings {
    /// `KEY=VALUE`, as `spreadly serve --set` takes them.
    pub set: Vec<String>,
    /// Most open files of the hub, where it isn't to have all that we have.
    pub open_files: Option<u64>,
}

impl Hub {
    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or isn't ready in time; with the end of its log.
    pub fn start(binary: &Path, settings: &Settings) -> Result<Self, String> {
        let as_text = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(as_text)?;
        let feeds = folder.path().join("feeds");
        fs::create_dir(&feeds).map_err(as_text)?;
        let (public, admin) = (free_port()?, free_port()?);
        let config = folder.path().join("spreadly.toml");
        let root = folder.path().display();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{public}\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
             [store]\nurl = \"sqlite:{root}/spreadly.db\"\n\
             [feeds.files]\npath = \"{root}/feeds\"\n"
        );
        fs::write(&config, text).map_err(as_text)?;
        let log = File::create(folder.path().join("log")).map_err(as_text)?;
        // Its working directory is the folder, where relative defaults would land.
        let binary = fs::canonicalize(binary).map_err(|e| format!("{}: {e}", binary.display()))?;
        let mut command = match settings.open_files {
            None => Command::new(&binary),
            // It becomes the hub, so the process is the same.
            Some(most) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={most}:{most}")).arg(&binary);
                command
            }
        };
        let process = command
            .args(["serve", "--config"])
            .arg(&config)
            .args(settings.set.iter().flat_map(|entry| ["--set", entry]))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(as_text)?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}", binary.display()))?;
        let url = format!("ws://127.0.0.1:{public}/graphql");
        let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut hub = Self { process, folder, feeds, url, public: on(public), admin: on(admin) };
        hub.wait_until_ready()?;
        Ok(hub)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = fs::read(self.folder.path().join("log")).unwrap_or_default();
        let from = text.len().saturating_sub(LAST_WORDS);
        format!("the hub's log ends:\n{}", String::from_utf8_lossy(&text[from..]))
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("the hub ended: {status}; {}", self.last_words()));
            }
            let answer = readyz(self.admin).unwrap_or_default();
            if answer.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            if began.elapsed() > START_TIMEOUT {
                return Err(format!("not ready: {answer}; {}", self.last_words()));
            }
            std::thread::sleep(START_PAUSE);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // What it leaves goes with the folder.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Another process may take it before the hub does, which then fails aloud.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

fn readyz(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
