//! PostgreSQL and a Connect worker for `backbeat dev --connect`, with the tables and the sink of `connect/`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use backbeat_devstack::{Connect, Devstack, Postgres};

use crate::sinks::ConnectWorker;

const TABLES: &str = include_str!("../../connect/sql/postgres.sql");
const SINK: &str = include_str!("../../connect/sinks/postgres.json");

/// A running PostgreSQL with a sink that writes reports to it. Dropping it stops both.
pub(crate) struct Warehouse {
    // Fields drop in order: the worker stops first, because it has connections to PostgreSQL.
    connect: Connect,
    postgres: Postgres,
    log: PathBuf,
}

impl Warehouse {
    /// Starts PostgreSQL and the worker, and waits until the sink is running.
    pub(crate) fn start(stack: &Devstack, connect_port: u16, postgres_port: u16, dir: &Path) -> anyhow::Result<Self> {
        let postgres = Postgres::start(postgres_port, &dir.join("postgres.log"))?;
        postgres.query(TABLES)?;
        let environment = [
            ("CONNECT_REGISTRY_URL", stack.schema_registry().replace("/apis/ccompat/v7", "/apis/registry/v2")),
            ("CONNECT_JDBC_URL", postgres.jdbc_url()),
            ("CONNECT_JDBC_USER", postgres.user().to_owned()),
            ("CONNECT_JDBC_PASSWORD", String::new()),
        ];
        let dir = dir.join("connect");
        let connect = Connect::start(connect_port, &stack.bootstrap_servers(), &environment, &dir)?;
        let worker = ConnectWorker::new(&connect.url())?;
        worker.apply("postgres", &serde_json::from_str(SINK)?)?;
        let sink = worker.wait_until_started("postgres")?;
        if !sink.is_running() {
            bail!("{sink}");
        }
        Ok(Self { connect, postgres, log: dir.join("connect.log") })
    }

    pub(crate) fn postgres_url(&self) -> String {
        self.postgres.url()
    }

    pub(crate) fn connect_url(&self) -> String {
        self.connect.url()
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Returns the number of rows and the last beat in the table as text, empty while the table is empty. Returns an
    /// error if PostgreSQL or the worker has ended.
    pub(crate) fn row_summary(&mut self) -> anyhow::Result<String> {
        self.postgres.check()?;
        self.connect.check()?;
        let rows = self.postgres.query(
            "select count(*) || case count(*) when 1 then ' row' else ' rows' end || ', up to beat ' || max(to_beat)
             from bar_reports",
        )?;
        Ok(rows.trim().to_owned())
    }
}
