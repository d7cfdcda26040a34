//! A Kafka that demands TLS and passwords, and denies what was not allowed, and a registry that demands TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backbeat_devstack::{Supervised, free_port, stock_registry, stock_tool};

use crate::{run, wait_until};

const LIMIT: Duration = Duration::from_mins(1);
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A broker with two listeners: one for clients, by SASL and TLS, and one for whoever runs the tests, who may do
/// everything.
pub struct SecuredKafka {
    dir: PathBuf,
    clients: String,
    ours: String,
    _process: Supervised,
}

impl SecuredKafka {
    /// Starts one with its data in `dir`, which knows `users`; each one's password is its name and `-secret`.
    pub fn start(dir: &Path, users: &[&str]) -> Self {
        let [clients, ours, controller] = [(); 3].map(|()| free_port().expect("a port"));
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        fs::write(dir.join("ca.pem"), own.cert.pem()).expect("writes");
        fs::write(dir.join("server.pem"), own.signing_key.serialize_pem() + &own.cert.pem()).expect("writes");
        let settings = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENTS://127.0.0.1:{clients},OURS://127.0.0.1:{ours},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=CLIENTS:SASL_SSL,OURS:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=OURS
listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.clients.ssl.keystore.type=PEM
listener.name.clients.ssl.keystore.location={dir}/server.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
log.dirs={dir}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
",
            dir = dir.display()
        );
        let path = dir.join("server.properties");
        fs::write(&path, settings).expect("writes");
        let mut format = stock_tool("kafka.tools.StorageTool").expect("Kafka is there");
        format.args(["format", "--cluster-id", "YmFja2JlYXQtc2VjdXJlZA", "--config"]).arg(&path);
        for user in users {
            format.args(["--add-scram", &format!("SCRAM-SHA-512=[name={user},password={user}-secret]")]);
        }
        run(&mut format);
        let mut kafka = stock_tool("kafka.Kafka").expect("Kafka is there");
        kafka.arg(&path);
        let process = Supervised::spawn(&kafka, &dir.join("broker.log"), STOP_WITHIN).expect("it starts");
        let (clients, ours) = (format!("127.0.0.1:{clients}"), format!("127.0.0.1:{ours}"));
        wait_until("a broker that answers", LIMIT, || {
            backbeat_broker::cluster_id(&ours, Duration::from_secs(2)).is_some()
        });
        Self { dir: dir.to_owned(), clients, ours, _process: process }
    }

    /// Where clients must show who they are.
    pub fn for_clients(&self) -> &str {
        &self.clients
    }

    /// Where we need not.
    pub fn for_us(&self) -> &str {
        &self.ours
    }

    /// The properties file of `user`.
    pub fn properties(&self, user: &str, password: &str) -> PathBuf {
        let path = self.dir.join(format!("{user}.properties"));
        let ca = self.dir.join("ca.pem");
        let text = format!(
            "# of {user}\nsecurity.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username={user}\nsasl.password={password}\nssl.ca.location={}\n",
            ca.display()
        );
        fs::write(&path, text).expect("writes");
        path
    }

    /// Lets `user` do `operations` with `resources`, which are flags of kafka-acls.
    pub fn allow(&self, user: &str, operations: &[&str], resources: &[(&str, &str)]) {
        let mut tool = stock_tool("org.apache.kafka.tools.AclCommand").expect("Kafka's tools are there");
        tool.args(["--bootstrap-server", &self.ours, "--add", "--allow-principal", &format!("User:{user}")]);
        for operation in operations {
            tool.args(["--operation", operation]);
        }
        for (flag, name) in resources {
            tool.args([flag, name]);
        }
        run(&mut tool);
    }
}

/// A schema registry that speaks TLS only.
pub struct SecuredRegistry {
    url: String,
    authority: PathBuf,
    _process: Supervised,
}

impl SecuredRegistry {
    /// Starts one with its files in `dir`.
    pub fn start(dir: &Path) -> Self {
        let [plain, port] = [(); 2].map(|()| free_port().expect("a port").to_string());
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let (authority, key) = (dir.join("registry-ca.pem"), dir.join("registry-key.pem"));
        fs::write(&authority, own.cert.pem()).expect("writes");
        fs::write(&key, own.signing_key.serialize_pem()).expect("writes");
        let mut command = stock_registry().expect("it is there");
        command.current_dir(dir);
        command.envs([("QUARKUS_HTTP_PORT", &plain), ("QUARKUS_HTTP_SSL_PORT", &port)]);
        command.env("QUARKUS_HTTP_INSECURE_REQUESTS", "disabled");
        command.env("QUARKUS_HTTP_SSL_CERTIFICATE_FILES", &authority);
        command.env("QUARKUS_HTTP_SSL_CERTIFICATE_KEY_FILES", &key);
        let process = Supervised::spawn(&command, &dir.join("registry.log"), STOP_WITHIN).expect("it starts");
        Self { url: format!("https://127.0.0.1:{port}/apis/ccompat/v7"), authority, _process: process }
    }

    /// Base URL of its Confluent API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A file with who signed its certificate.
    pub fn authority(&self) -> &Path {
        &self.authority
    }
}
