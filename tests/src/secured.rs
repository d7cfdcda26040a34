//! A Kafka that requires TLS, passwords and ACLs, and a schema registry that requires TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backbeat_devstack::{Supervised, free_port, kafka_cli, registry_command};

use crate::{run, wait_until};

const LIMIT: Duration = Duration::from_mins(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker with two listeners: one for clients, with SASL and TLS, and one without authentication for the tests
/// themselves, where everything is allowed.
pub struct SecuredKafka {
    dir: PathBuf,
    client_address: String,
    admin_address: String,
    _process: Supervised,
}

impl SecuredKafka {
    /// Starts a broker with its data in `dir` and accounts for `users`. A user's password is the user's name and
    /// `-secret`.
    pub fn start(dir: &Path, users: &[&str]) -> Self {
        let [clients, admin, controller] = [(); 3].map(|()| free_port().expect("a free port"));
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        fs::write(dir.join("ca.pem"), own.cert.pem()).expect("the file is written");
        fs::write(dir.join("server.pem"), own.signing_key.serialize_pem() + &own.cert.pem())
            .expect("the file is written");
        let settings = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENTS://127.0.0.1:{clients},ADMIN://127.0.0.1:{admin},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=CLIENTS:SASL_SSL,ADMIN:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=ADMIN
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
        fs::write(&path, settings).expect("the file is written");
        let mut format = kafka_cli("kafka.tools.StorageTool").expect("Kafka is available");
        format.args(["format", "--cluster-id", "YmFja2JlYXQtc2VjdXJlZA", "--config"]).arg(&path);
        for user in users {
            format.args(["--add-scram", &format!("SCRAM-SHA-512=[name={user},password={user}-secret]")]);
        }
        run(&mut format);
        let mut kafka = kafka_cli("kafka.Kafka").expect("Kafka is available");
        kafka.arg(&path);
        let process = Supervised::spawn(&kafka, &dir.join("broker.log"), STOP_TIMEOUT).expect("the broker starts");
        let (client_address, admin_address) = (format!("127.0.0.1:{clients}"), format!("127.0.0.1:{admin}"));
        wait_until("a broker that answers", LIMIT, || {
            backbeat_broker::kafka_cluster_id(&admin_address, Duration::from_secs(2)).is_some()
        });
        Self { dir: dir.to_owned(), client_address, admin_address, _process: process }
    }

    /// The address of the listener where clients must authenticate.
    pub fn client_address(&self) -> &str {
        &self.client_address
    }

    /// The address of the listener without authentication.
    pub fn admin_address(&self) -> &str {
        &self.admin_address
    }

    /// Writes the properties file of `user` with `password`, and returns its path.
    pub fn properties(&self, user: &str, password: &str) -> PathBuf {
        let path = self.dir.join(format!("{user}.properties"));
        let ca = self.dir.join("ca.pem");
        let text = format!(
            "# of {user}\nsecurity.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username={user}\nsasl.password={password}\nssl.ca.location={}\n",
            ca.display()
        );
        fs::write(&path, text).expect("the file is written");
        path
    }

    /// Adds ACLs that allow `user` the `operations` on `resources`, given as flags of `kafka-acls` with their values.
    pub fn allow(&self, user: &str, operations: &[&str], resources: &[(&str, &str)]) {
        let mut tool = kafka_cli("org.apache.kafka.tools.AclCommand").expect("the Kafka CLI is available");
        tool.args(["--bootstrap-server", &self.admin_address, "--add", "--allow-principal", &format!("User:{user}")]);
        for operation in operations {
            tool.args(["--operation", operation]);
        }
        for (flag, name) in resources {
            tool.args([flag, name]);
        }
        run(&mut tool);
    }
}

/// A schema registry that accepts TLS only.
pub struct SecuredRegistry {
    url: String,
    authority: PathBuf,
    _process: Supervised,
}

impl SecuredRegistry {
    /// Starts a registry with its files in `dir`.
    pub fn start(dir: &Path) -> Self {
        let [plain, port] = [(); 2].map(|()| free_port().expect("a free port").to_string());
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let (authority, key) = (dir.join("registry-ca.pem"), dir.join("registry-key.pem"));
        fs::write(&authority, own.cert.pem()).expect("the file is written");
        fs::write(&key, own.signing_key.serialize_pem()).expect("the file is written");
        let mut command = registry_command().expect("the registry is available");
        command.current_dir(dir);
        command.envs([("QUARKUS_HTTP_PORT", &plain), ("QUARKUS_HTTP_SSL_PORT", &port)]);
        command.env("QUARKUS_HTTP_INSECURE_REQUESTS", "disabled");
        command.env("QUARKUS_HTTP_SSL_CERTIFICATE_FILES", &authority);
        command.env("QUARKUS_HTTP_SSL_CERTIFICATE_KEY_FILES", &key);
        let process =
            Supervised::spawn(&command, &dir.join("registry.log"), STOP_TIMEOUT).expect("the registry starts");
        Self { url: format!("https://127.0.0.1:{port}/apis/ccompat/v7"), authority, _process: process }
    }

    /// The base URL of the registry's Confluent API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The path of the certificate of the authority that signed the registry's certificate.
    pub fn authority(&self) -> &Path {
        &self.authority
    }
}
