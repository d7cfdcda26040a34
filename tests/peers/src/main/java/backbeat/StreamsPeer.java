package backbeat;

import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * Counts the claims and the agents of each window, exactly once, with Kafka Streams.
 *
 * <p>This is less than reverb does: it keeps no facts of tasks, and windows never close. It is written for speed: each
 * partition is aggregated where it is read, without a repartition topic, and the stores are cached.
 */
public final class StreamsPeer {
    /** As often as reverb sends and commits. */
    private static final Duration INTERVAL = Duration.ofSeconds(1);

    private static final long CACHE_BYTES = 64L * 1024 * 1024;
    private static final int HEADER_BYTES = 5;

    private StreamsPeer() {}

    public static void main(String[] args) throws IOException {
        if (args.length != 8) {
            System.err.println("usage: StreamsPeer BOOTSTRAP_SERVERS APPLICATION_ID CLAIMS_TOPIC COUNTS_TOPIC SCHEMA_FILE"
                    + " BAR_LENGTH in-memory|rocksdb STATE_DIR");
            System.exit(2);
        }
        Schema schema = new Schema.Parser().parse(new File(args[4]));
        long barLength = Long.parseLong(args[5]);

        Topology topology = new Topology();
        topology.addSource("claims", Serdes.ByteArray().deserializer(), Serdes.ByteArray().deserializer(), args[2]);
        topology.addProcessor("counter", () -> new Counter(schema, barLength), "claims");
        for (String store : new String[] {"windows", "agents"}) {
            KeyValueBytesStoreSupplier supplier = args[6].equals("rocksdb")
                    ? Stores.persistentKeyValueStore(store)
                    : Stores.inMemoryKeyValueStore(store);
            topology.addStateStore(
                    Stores.keyValueStoreBuilder(supplier, Serdes.Bytes(), Serdes.ByteArray()).withCachingEnabled(),
                    "counter");
        }
        topology.addSink("counts", args[3], Serdes.String().serializer(), Serdes.String().serializer(), "counter");

        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[1]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, args[7]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, INTERVAL.toMillis());
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, CACHE_BYTES);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        KafkaStreams streams = new KafkaStreams(topology, settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
        streams.start();
    }

    /** Counts the claims of one partition. */
    private static final class Counter implements Processor<byte[], byte[], String, String> {
        private final GenericDatumReader<GenericRecord> reader;
        private final long barLength;
        private final Set<Long> changed = new TreeSet<>();
        private ProcessorContext<String, String> context;
        /** By the window's first beat: the number of claims and of agents. */
        private KeyValueStore<Bytes, byte[]> windows;
        /** The window's first beat and the id of an agent that has claimed in it. */
        private KeyValueStore<Bytes, byte[]> agents;

        private BinaryDecoder decoder;
        private GenericRecord claim;

        Counter(Schema schema, long barLength) {
            this.reader = new GenericDatumReader<>(schema);
            this.barLength = barLength;
        }

        @Override
        public void init(ProcessorContext<String, String> context) {
            this.context = context;
            windows = context.getStateStore("windows");
            agents = context.getStateStore("agents");
            // What was counted before a restart may not have been forwarded.
            try (var all = windows.all()) {
                all.forEachRemaining(entry -> changed.add(ByteBuffer.wrap(entry.key.get()).getLong()));
            }
            context.schedule(INTERVAL, PunctuationType.WALL_CLOCK_TIME, this::forward);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            byte[] value = record.value();
            try {
                decoder = DecoderFactory.get()
                        .binaryDecoder(value, HEADER_BYTES, value.length - HEADER_BYTES, decoder);
                claim = reader.read(claim, decoder);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            long beat = (Long) claim.get("beat_index");
            long window = beat - beat % barLength;
            byte[] agent = claim.get("agent_id").toString().getBytes(StandardCharsets.UTF_8);
            byte[] agentKey = ByteBuffer.allocate(Long.BYTES + agent.length).putLong(window).put(agent).array();
            boolean isNew = agents.putIfAbsent(Bytes.wrap(agentKey), new byte[0]) == null;

            Bytes key = Bytes.wrap(ByteBuffer.allocate(Long.BYTES).putLong(window).array());
            byte[] before = windows.get(key);
            ByteBuffer counts = ByteBuffer.wrap(before == null ? new byte[2 * Long.BYTES] : before);
            long claims = counts.getLong() + 1;
            long agentCount = counts.getLong() + (isNew ? 1 : 0);
            windows.put(key, ByteBuffer.allocate(2 * Long.BYTES).putLong(claims).putLong(agentCount).array());
            changed.add(window);
        }

        private void forward(long now) {
            for (long window : changed) {
                byte[] key = ByteBuffer.allocate(Long.BYTES).putLong(window).array();
                ByteBuffer counts = ByteBuffer.wrap(windows.get(Bytes.wrap(key)));
                String text = counts.getLong() + " " + counts.getLong();
                context.forward(new Record<>(context.taskId().partition() + " " + window, text, now));
            }
            changed.clear();
        }
    }
}
