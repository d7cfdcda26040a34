//! PostgreSQL and a worker of Kafka Connect for `backbeat dev`, with what users put into their own.

use std::path::{Path, PathBuf};

use anyhow::bail;
use backbeat_devstack::{Connect, Devstack, Postgres};

use crate::sinks::Worker;

const TABLES: &str = include_str!("../../connect/sql/postgres.sql");
const SINK: &str = include_str!("../../connect/sinks/postgres.json");

/// Reports as rows. Dropping it stops it.
pub(crate) struct Warehouse {
    // Stopped first: it has connections to the other.
    connect: Connect,
    postgres: Postgres,
    log: PathBuf,
}

impl Warehouse {
    /// Starts both, and waits until the sink runs.
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
        let worker = Worker::new(&connect.url())?;
        worker.apply("postgres", &serde_json::from_str(SINK)?)?;
        let sink = worker.settled("postgres")?;
        if !sink.runs() {
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

    /// What the table has, for people; nothing while it has none. An error if one of the two has ended by itself.
    pub(crate) fn rows(&mut self) -> anyhow::Result<String> {
        self.postgres.check()?;
        self.connect.check()?;
        let rows = self.postgres.query(
            "select count(*) || case count(*) when 1 then ' row' else ' rows' end || ', up to beat ' || max(to_beat)
             from bar_reports",
        )?;
        Ok(rows.trim().to_owned())
    }
}
