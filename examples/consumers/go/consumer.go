// Prints every event of a fieldpost topic once: consumer BROKERS TOPIC GROUP, until SIGTERM.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

type position struct{ epoch, seq uint64 }

// By partition: by lane of a log: the last position.
var last = map[int32]map[string]position{}

func isNew(record *kgo.Record) bool {
	headers := map[string]string{}
	for _, header := range record.Headers {
		headers[header.Key] = string(header.Value)
	}
	lane, found := headers["fieldpost-log"]
	if !found {
		return true // not written by fieldpost
	}
	if _, found := headers["fieldpost-backlog"]; found {
		lane += "+backlog"
	}
	var at position
	_, err := fmt.Sscan(headers["fieldpost-epoch"]+" "+headers["fieldpost-seq"], &at.epoch, &at.seq)
	check(err)
	before := last[record.Partition][lane]
	if at.epoch < before.epoch || (at.epoch == before.epoch && at.seq <= before.seq) {
		return false
	}
	last[record.Partition][lane] = at
	return true
}

// Puts the positions beside the offsets that are about to be committed.
func remember(request *kmsg.OffsetCommitRequest) error {
	for _, topic := range request.Topics {
		for i := range topic.Partitions {
			var words []string
			for lane, at := range last[topic.Partitions[i].Partition] {
				words = append(words, fmt.Sprintf("%s:%d:%d", lane, at.epoch, at.seq))
			}
			topic.Partitions[i].Metadata = kmsg.StringPtr(strings.Join(words, " "))
		}
	}
	return nil
}

func main() {
	brokers, topic, group := os.Args[1], os.Args[2], os.Args[3]
	assigned := func(ctx context.Context, client *kgo.Client, given map[string][]int32) {
		committed, err := kadm.NewClient(client).FetchOffsetsForTopics(ctx, group, topic)
		check(err)
		check(committed.Error())
		for _, partition := range given[topic] {
			last[partition] = map[string]position{}
			offset, _ := committed.Lookup(topic, partition)
			for _, word := range strings.Fields(offset.Metadata) {
				var at position
				lane, numbers, _ := strings.Cut(word, ":")
				_, err := fmt.Sscanf(numbers, "%d:%d", &at.epoch, &at.seq)
				check(err)
				last[partition][lane] = at
			}
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(brokers, ",")...), kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.OnPartitionsAssigned(assigned))
	check(err)
	defer client.CloseAllowingRebalance()
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	results := bufio.NewWriter(os.Stdout)
	for {
		fetches := client.PollRecords(stop, 500)
		if stop.Err() != nil {
			return
		}
		check(fetches.Err())
		fetches.EachRecord(func(record *kgo.Record) {
			if isNew(record) {
				fmt.Fprintf(results, "%s\n", record.Value) // the result: put your own work here
			}
		})
		// Results first, then offset and positions in one commit.
		check(results.Flush())
		check(client.CommitRecords(kgo.PreCommitFnContext(context.Background(), remember), fetches.Records()...))
		client.AllowRebalance()
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
