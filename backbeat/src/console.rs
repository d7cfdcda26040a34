//! `backbeat console`: Kafka's own console consumer, with an Avro deserializer.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use backbeat_broker::KafkaArgs;
use backbeat_devstack::console_consumer;

use crate::kafka_tool::exit_code;

/// Flags of `backbeat console`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  backbeat console barreports -- --from-beginning --max-messages 1
  backbeat console beatframes | jq .beat_index")]
pub(crate) struct Args {
    /// A topic, without the prefix.
    topic: String,

    /// The consumer's own flags, after `--`.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,

    #[command(flatten)]
    kafka: KafkaArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let KafkaArgs { bootstrap_servers, schema_registry, kafka_config, topic_prefix, .. } = &args.kafka;
    let own = schema_registry.trim_end_matches('/').strip_suffix("/apis/ccompat/v7").with_context(|| {
        format!("{schema_registry} is not Apicurio's (.../apis/ccompat/v7): with another registry, use kafka-avro-console-consumer")
    })?;
    let mut consumer = console_consumer()?;
    consumer
        .args(["--bootstrap-server", bootstrap_servers])
        .arg("--topic")
        .arg(format!("{topic_prefix}{}", args.topic));
    // The stock consumer would show aborted records, too.
    consumer.args(["--isolation-level", "read_committed"]);
    if let Some(file) = kafka_config {
        anyhow::bail!(
            "{} holds librdkafka's properties, which Java's clients do not read: give the consumer a file of its own by `backbeat kafka console-consumer --command-config FILE`",
            file.display()
        );
    }
    for property in [
        "value.deserializer=io.apicurio.registry.serde.avro.AvroKafkaDeserializer".to_owned(),
        format!("value.deserializer.apicurio.registry.url={own}/apis/registry/v3"),
    ] {
        consumer.args(["--formatter-property", &property]);
    }
    Ok(exit_code(consumer.args(&args.flags).status().context("running java")?))
}
