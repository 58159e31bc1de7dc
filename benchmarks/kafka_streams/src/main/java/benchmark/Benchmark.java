package benchmark;

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.ReadOnlyKeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * The state path on Kafka Streams, pass after pass in one JVM, so that all but the first are compiled.
 *
 * <p>Arguments: BROKER VECTORS DIMENSIONS DIRECTORY EVENTS USERS, where VECTORS is a file of float32, content
 * after content, and USERS is a comma-separated list of whom to print in the end. Each line of standard input
 * is a pass: NAME PREFIX GUARANTEE CACHE THREADS, with CACHE {@code on} or {@code off}; it reads the topics
 * from their beginning until EVENTS are applied. Written: {@code progress EVENTS WALL_S PROCESSOR_S}, {@code
 * state USER BASE64}, and {@code done} when everything of the pass is closed and deleted.
 */
public final class Benchmark {
    private static final long SAMPLE_MS = 100;
    private static final Map<String, Double> WEIGHTS = Map.of("likes", 1.0, "comments", 2.0, "shares", 3.0);

    private final String broker;
    private final float[][] vectors;
    private final Path directory;
    private final long events;
    private final List<String> users;

    private Benchmark(String[] arguments) throws IOException {
        broker = arguments[0];
        vectors = read(Path.of(arguments[1]), Integer.parseInt(arguments[2]));
        directory = Path.of(arguments[3]);
        events = Long.parseLong(arguments[4]);
        users = List.of(arguments[5].split(","));
    }

    public static void main(String[] arguments) throws Exception {
        Benchmark benchmark = new Benchmark(arguments);
        BufferedReader passes = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = passes.readLine(); line != null; line = passes.readLine()) {
            String[] pass = line.split(" ");
            benchmark.run(pass[0], pass[1], pass[2], pass[3].equals("on"), Integer.parseInt(pass[4]));
        }
    }

    private static float[][] read(Path file, int dimensions) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
        float[][] vectors = new float[bytes.remaining() / Float.BYTES / dimensions][dimensions];
        for (float[] vector : vectors) {
            bytes.asFloatBuffer().get(vector);
            bytes.position(bytes.position() + Float.BYTES * dimensions);
        }
        return vectors;
    }

    private void run(String name, String prefix, String guarantee, boolean cache, int threads)
            throws Exception {
        String application = prefix + name;
        LongAdder done = new LongAdder();
        KafkaStreams streams =
                new KafkaStreams(topology(prefix, cache, done).build(), properties(application, guarantee, cache, threads));
        streams.setUncaughtExceptionHandler(
                error -> {
                    error.printStackTrace();
                    Runtime.getRuntime().halt(1); // a measurement with a failure in it is none
                    return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
                });
        streams.start();
        OperatingSystemMXBean system = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        long count;
        do {
            Thread.sleep(SAMPLE_MS);
            count = done.sum();
            System.out.printf(
                    Locale.ROOT,
                    "progress %d %.6f %.6f%n",
                    count,
                    System.nanoTime() / 1e9,
                    system.getProcessCpuTime() / 1e9);
        } while (count < events);
        ReadOnlyKeyValueStore<Bytes, byte[]> store =
                streams.store(
                        StoreQueryParameters.fromNameAndType(Interests.STORE, QueryableStoreTypes.keyValueStore()));
        for (String user : users) {
            byte[] state = store.get(Bytes.wrap(user.getBytes(StandardCharsets.UTF_8)));
            System.out.printf("state %s %s%n", user, state == null ? "" : Base64.getEncoder().encodeToString(state));
        }
        streams.close();
        streams.cleanUp();
        try (Admin admin = Admin.create(Map.of(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, broker))) {
            admin.deleteTopics(List.of(application + "-" + Interests.STORE + "-changelog")).all().get();
        }
        System.out.println("done");
    }

    private StreamsBuilder topology(String prefix, boolean cache, LongAdder done) {
        Map<String, Double> weights = new HashMap<>();
        WEIGHTS.forEach((topic, weight) -> weights.put(prefix + topic, weight));
        StoreBuilder<KeyValueStore<Bytes, byte[]>> store =
                Stores.keyValueStoreBuilder(
                        Stores.persistentKeyValueStore(Interests.STORE), Serdes.Bytes(), Serdes.ByteArray());
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(cache ? store.withCachingEnabled() : store.withCachingDisabled());
        builder.stream(weights.keySet(), Consumed.with(Serdes.Bytes(), Serdes.ByteArray()))
                .process(() -> new Interests(vectors, weights, done), Interests.STORE);
        return builder;
    }

    private Properties properties(String application, String guarantee, boolean cache, int threads) {
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, broker);
        properties.put(StreamsConfig.STATE_DIR_CONFIG, directory.toString());
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, guarantee);
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        if (!cache) {
            properties.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        }
        properties.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        return properties;
    }
}
