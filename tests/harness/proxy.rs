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
    /// nginx, passing HTTP on.
    pub fn nginx(hubs: &[&Hub]) -> Self {
        Self::start(|folder, port| {
            let log = format!("error_log {}/nginx.log;", folder.display());
            let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let paths = paths.map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()));
            let page = nginx_block("nginx", hubs, port);
            let head = format!("daemon off; pid {}/nginx.pid;", folder.display());
            let text = format!(
                "{head}\nevents {{ worker_connections 4096; }}\n\
                 http {{ {log} access_log off; {}\n{page}\n}}\n",
                paths.join(" ")
            );
            nginx(folder, &text)
        })
    }

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

    /// HAProxy, passing HTTP on to hubs that say by `/readyz` whether they may be asked.
    pub fn haproxy(hubs: &[&Hub]) -> Self {
        Self::start(|folder, port| {
            let listen = format!("bind 127.0.0.1:{port}");
            let line = "    server one 127.0.0.1:4000 check port 4001 inter 1s";
            let servers = hubs.iter().enumerate().map(|(number, hub)| {
                let (hub, admin) = (hub.address(), hub.admin_address().port());
                format!("    server hub-{number} {hub} check port {admin} inter 1s")
            });
            // The rest of the last line is that of each.
            let text = block("haproxy");
            let (_, rest) = text.split_once(line).expect("the page's file has a hub");
            let rest = rest.lines().next().unwrap_or_default();
            let servers: Vec<_> = servers.map(|server| server + rest).collect();
            haproxy(
                folder,
                &replaced(
                    &text,
                    &[
                        ("bind :443 ssl crt /etc/ssl/hub.pem alpn http/1.1", &listen),
                        (&format!("{line}{rest}"), &servers.join("\n")),
                    ],
                ),
            )
        })
    }

    /// HAProxy, passing TCP on.
    pub fn haproxy_tcp(hub: &Hub) -> Self {
        Self::start(|folder, port| {
            let listen = format!("bind 127.0.0.1:{port}");
            let text = replaced(
                &block("haproxy-tcp"),
                &[
                    ("bind :443 ssl crt /etc/ssl/hub.pem alpn http/1.1", &listen),
                    ("127.0.0.1:4000", &hub.address().to_string()),
                    ("port 4001", &format!("port {}", hub.admin_address().port())),
                ],
            );
            haproxy(folder, &text)
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

fn haproxy(folder: &Path, text: &str) -> Command {
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-f"]).arg(file);
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
