package benchmark;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Map;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * Decays the user's vector to the event's time and adds the content's vector.
 *
 * <p>A user's state: newest event time (double, ms), mass (double), the sum (float32 each), little-endian.
 */
final class Interests implements Processor<Bytes, byte[], Void, Void> {
    static final String STORE = "interests";
    private static final double HALF_LIFE_MS = 7 * 86_400_000.0;
    private static final int HEAD = 2 * Double.BYTES;
    private static final ObjectReader READER = new ObjectMapper().readerFor(Event.class);

    private final float[][] vectors;
    private final Map<String, Double> weights;
    private final LongAdder done;
    private ProcessorContext<Void, Void> context;
    private KeyValueStore<Bytes, byte[]> store;
    private float[] sum;

    /** {@code weights} by topic; {@code done} counts events, of all threads. */
    Interests(float[][] vectors, Map<String, Double> weights, LongAdder done) {
        this.vectors = vectors;
        this.weights = weights;
        this.done = done;
    }

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Event(
            @JsonProperty("user_id") String userId,
            @JsonProperty("content_id") String contentId,
            @JsonProperty("occurred_at") long occurredAt) {}

    @Override
    public void init(ProcessorContext<Void, Void> context) {
        this.context = context;
        this.store = context.getStateStore(STORE);
        this.sum = new float[vectors[0].length];
    }

    @Override
    public void process(Record<Bytes, byte[]> record) {
        Event event;
        try {
            event = READER.readValue(record.value());
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        double when = event.occurredAt();
        double weight = weights.get(context.recordMetadata().orElseThrow().topic());
        float[] vector = vectors[Integer.parseInt(event.contentId().substring(1))];
        byte[] before = store.get(record.key());
        double newest = when;
        double mass = weight;
        float old = 0;
        float share = (float) weight;
        if (before != null) {
            ByteBuffer state = ByteBuffer.wrap(before).order(ByteOrder.LITTLE_ENDIAN);
            double reference = state.getDouble();
            newest = Math.max(when, reference);
            double fading = Math.pow(2, -(newest - reference) / HALF_LIFE_MS);
            double late = Math.pow(2, -(newest - when) / HALF_LIFE_MS);
            mass = state.getDouble() * fading + weight * late;
            old = (float) fading;
            share = (float) (weight * late);
            state.asFloatBuffer().get(sum);
        }
        for (int i = 0; i < sum.length; i++) {
            sum[i] = sum[i] * old + vector[i] * share;
        }
        byte[] after = new byte[HEAD + Float.BYTES * sum.length];
        ByteBuffer state = ByteBuffer.wrap(after).order(ByteOrder.LITTLE_ENDIAN);
        state.putDouble(newest).putDouble(mass).asFloatBuffer().put(sum);
        store.put(record.key(), after);
        done.increment();
    }
}
