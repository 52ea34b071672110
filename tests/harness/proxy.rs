//! Real proxies before hubs, with the files of docs/how-to/proxies.md: only ports differ, and that
//! the client's side has no TLS.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::PATIENCE;
use super::{Hub, ReservedPort};

const BETWEEN_TRIES: Duration = Duration::from_millis(10);
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub struct Proxy {
    process: Child,
    port: ReservedPort,
    folder: TempDir,
}

impl Proxy {
    /// nginx, passing TCP on.
    pub fn nginx_stream(hub: &Hub) -> Self {
        Self::start(|folder, port| {
            let load = match Path::new(STREAM_MODULE).exists() {
                true => format!("load_module {STREAM_MODULE};"),
                false => String::new(),
            };
            let text = format!(
                "{load}\ndaemon off; pid {0}/nginx.pid; error_log {0}/nginx.log; events {{}}\n{1}",
                folder.display(),
                nginx_block("nginx-stream", &[hub], port)
            );
            nginx(folder, &text)
        })
    }

    /// HAProxy, passing TCP on.
    pub fn haproxy_tcp(hub: &Hub) -> Self {
        Self::start(|folder, port| {
            let file = folder.join("haproxy.cfg");
            let text = replaced(
                &block("haproxy-tcp"),
                &[
                    (
                        "bind :443 ssl crt /etc/ssl/hub.pem alpn http/1.1",
                        &format!("bind 127.0.0.1:{port}"),
                    ),
                    ("127.0.0.1:4000", &hub.address().to_string()),
                    ("port 4001", &format!("port {}", hub.admin_address().port())),
                ],
            );
            std::fs::write(&file, text).unwrap();
            let mut command = Command::new("/usr/sbin/haproxy");
            command.args(["-db", "-f"]).arg(file);
            command
        })
    }

    fn start(prepared: impl FnOnce(&Path, &ReservedPort) -> Command) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), ReservedPort::new());
        let mut command = prepared(folder.path(), &port);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().expect("the proxy is installed: run `make setup`");
        let mut own = Self { process, port, folder };
        let began = Instant::now();
        while TcpStream::connect(own.address()).is_err() {
            let ended = own.process.try_wait().unwrap();
            let waited = began.elapsed();
            assert!(ended.is_none() && waited < PATIENCE, "it does not start: {}", own.log());
            std::thread::sleep(BETWEEN_TRIES);
        }
        own
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number()))
    }

    /// What it has said.
    pub fn log(&self) -> String {
        let files = ["log", "nginx.log"].map(|name| self.folder.path().join(name));
        files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).concat()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Of nginx, its workers end with it only if it is asked.
        drop(Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status());
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the proxy's log:\n{}", self.log());
        }
    }
}

fn nginx(folder: &Path, text: &str) -> Command {
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(file).arg("-e").arg(folder.join("nginx.log"));
    command
}

/// A file of nginx with these hubs, without TLS.
fn nginx_block(kind: &str, hubs: &[&Hub], port: &ReservedPort) -> String {
    let listen = format!("listen 127.0.0.1:{port};");
    let server = "server 127.0.0.1:4000 max_fails=0;";
    let servers: String =
        hubs.iter().map(|hub| format!("server {} max_fails=0;", hub.address())).collect();
    replaced(
        &block(kind),
        &[
            ("listen 443 ssl;", &listen),
            ("ssl_certificate     /etc/ssl/hub.pem;", ""),
            ("ssl_certificate_key /etc/ssl/hub.key;", ""),
            (server, &servers),
        ],
    )
}

/// A file of the page.
fn block(kind: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/proxies.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(&format!("```{kind}\n")).expect("the page has the file");
    rest.split_once("```").expect("the file ends").0.to_owned()
}

fn replaced(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (ours, own)| {
        assert!(text.contains(ours), "the page's file has no {ours:?}");
        text.replace(ours, own)
    })
}
