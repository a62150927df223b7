import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints every event of a fieldpost topic once: Consumer BROKERS TOPIC GROUP, until SIGTERM. */
public final class Consumer {
    record Position(long epoch, long seq) {
        boolean isBehind(Position other) {
            return other == null || epoch > other.epoch || (epoch == other.epoch && seq > other.seq);
        }
    }

    /** By partition: by lane of a log: the last position. */
    static final Map<TopicPartition, Map<String, Position>> last = new HashMap<>();
    static volatile boolean stopping = false;

    static String header(ConsumerRecord<?, ?> message, String name) {
        var header = message.headers().lastHeader(name);
        return header == null ? null : new String(header.value(), StandardCharsets.UTF_8);
    }

    static boolean isNew(TopicPartition partition, ConsumerRecord<?, ?> message) {
        String log = header(message, "fieldpost-log");
        if (log == null) return true; // not written by fieldpost
        var position = new Position(
            Long.parseLong(header(message, "fieldpost-epoch")), Long.parseLong(header(message, "fieldpost-seq")));
        String lane = log + (header(message, "fieldpost-backlog") == null ? "" : "+backlog");
        if (!position.isBehind(last.get(partition).get(lane))) return false;
        last.get(partition).put(lane, position);
        return true;
    }

    static Map<String, Position> parsed(OffsetAndMetadata committed) {
        var positions = new HashMap<String, Position>();
        for (String word : committed == null ? new String[0] : committed.metadata().split(" ")) {
            String[] part = word.split(":");
            if (part.length == 3) positions.put(part[0], new Position(Long.parseLong(part[1]), Long.parseLong(part[2])));
        }
        return positions;
    }

    static OffsetAndMetadata remembered(TopicPartition partition, long offset) {
        var words = new StringJoiner(" ");
        last.get(partition).forEach((lane, at) -> words.add(lane + ":" + at.epoch + ":" + at.seq));
        return new OffsetAndMetadata(offset, words.toString());
    }

    public static void main(String[] args) {
        var main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping = true;
            try { main.join(); } catch (InterruptedException gone) { /* the process ends all the same */ }
        }));
        Map<String, Object> settings = Map.of("bootstrap.servers", args[0], "group.id", args[2],
            "auto.offset.reset", "earliest", "enable.auto.commit", "false");
        var results = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(args[1]), new ConsumerRebalanceListener() {
                public void onPartitionsRevoked(Collection<TopicPartition> taken) {}
                public void onPartitionsAssigned(Collection<TopicPartition> given) {
                    consumer.committed(Set.copyOf(given)).forEach((partition, at) -> last.put(partition, parsed(at)));
                }
            });
            while (!stopping) {
                var commit = new HashMap<TopicPartition, OffsetAndMetadata>();
                var messages = consumer.poll(Duration.ofMillis(500));
                for (var partition : messages.partitions()) {
                    for (var message : messages.records(partition)) {
                        if (isNew(partition, message)) results.println(message.value()); // put your own work here
                    }
                    long offset = messages.nextOffsets().get(partition).offset();
                    commit.put(partition, remembered(partition, offset));
                }
                results.flush(); // results first, then offset and positions in one commit
                consumer.commitSync(commit);
            }
        }
    }
}
