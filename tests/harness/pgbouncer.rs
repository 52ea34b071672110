//! A real PgBouncer before a database of a test, on a port the kernel chose; it ends with the test.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::client::PATIENCE;
use super::postgres::{BETWEEN_TRIES, as_server_user, give_to_server_user};
use super::{Postgres, ReservedPort};

pub struct PgBouncer {
    process: Child,
    port: ReservedPort,
    _folder: TempDir,
}

impl PgBouncer {
    /// `pool_mode` as its configuration has it.
    pub async fn start(postgres: &Postgres, pool_mode: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), ReservedPort::new());
        let file = folder.path().join("pgbouncer.ini");
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user=spreadly\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {pool_mode}\n",
            postgres.port()
        );
        std::fs::write(&file, settings).unwrap();
        give_to_server_user(folder.path());
        let mut command = as_server_user("/usr/sbin/pgbouncer".as_ref());
        command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("PgBouncer is there: run `make setup`");
        let own = Self { process, port, _folder: folder };
        let began = Instant::now();
        while tokio_postgres::connect(&own.url(), tokio_postgres::NoTls).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "PgBouncer does not start");
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        own
    }

    pub fn url(&self) -> String {
        format!("postgres://spreadly@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // The program that became another user has it as its child.
        let own = self.process.id().to_string();
        drop(Command::new("pkill").args(["-KILL", "-P", &own]).status());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
