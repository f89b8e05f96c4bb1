// Command peer is the Go side of the benchmark: a consumer to compare with, and the load around all peers.
//
//	peer consume   drain a queue, or relay it to an exchange; -acks 1 acks singly, 50 acks by 50 with `multiple`
//	peer fill      publish N persistent messages, pipelined, confirmed
//	peer latency   publish at a rate and measure until each answer is back
//
// The URI comes from BENCH_URI, so that no password is in the process list.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Order holds the two fields that every peer reads.
type Order struct {
	ID     *int64   `json:"id"`
	Amount *float64 `json:"amount"`
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: peer consume|fill|latency [flags]; the URI is in BENCH_URI")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	queue := flags.String("queue", "", "queue to consume, or to fill through the default exchange")
	out := flags.String("out", "", "exchange to relay to; latency: queue in which the answers arrive")
	count := flags.Int("count", 0, "messages to publish")
	prefetch := flags.Int("prefetch", 200, "prefetch")
	acks := flags.Int("acks", 1, "messages a (multiple) ack covers")
	concurrency := flags.Int("concurrency", 100, "relay with single acks: goroutines")
	stamp := flags.Bool("stamp", false, "relay with multiple acks: publish with a message id and the time, as lunaq has to")
	body := flags.String("body", "", "file with the body; NUMBER in it becomes the message's number")
	rate := flags.Int("rate", 500, "latency: messages a second")
	_ = flags.Parse(os.Args[2:])

	connection := must(amqp.Dial(os.Getenv("BENCH_URI")))
	defer connection.Close()
	channel := must(connection.Channel())
	switch os.Args[1] {
	case "fill":
		fill(channel, *queue, *count, template(*body))
	case "latency":
		latency(connection, channel, *queue, *out, *count, *rate, template(*body))
	case "consume":
		check(channel.Qos(*prefetch, 0, false))
		deliveries := must(channel.Consume(*queue, "bench", false, false, false, false, nil))
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		go func() {
			<-stop
			os.Exit(0)
		}()
		switch {
		case *out == "":
			drain(deliveries, *acks)
		case *acks == 1:
			relaySingly(connection, deliveries, *out, *concurrency)
		default:
			relayBatched(connection, deliveries, *out, *acks, *stamp)
		}
	default:
		log.Fatalf("no such command: %s", os.Args[1])
	}
}

func handle(body []byte) {
	var order Order
	check(json.Unmarshal(body, &order))
	if order.ID == nil || order.Amount == nil {
		log.Fatal("the message lacks id or amount")
	}
}

// drain acks every acks messages with `multiple`, and every 10 ms what is left.
func drain(deliveries <-chan amqp.Delivery, acks int) {
	open := 0
	var last amqp.Delivery
	tick := time.NewTicker(10 * time.Millisecond)
	for {
		select {
		case delivery, ok := <-deliveries:
			if !ok {
				return
			}
			handle(delivery.Body)
			last = delivery
			open++
			if open >= acks {
				check(last.Ack(acks > 1))
				open = 0
			}
		case <-tick.C:
			if open > 0 {
				check(last.Ack(true))
				open = 0
			}
		}
	}
}

func outgoing(body []byte) amqp.Publishing {
	return amqp.Publishing{ContentType: "application/json", DeliveryMode: amqp.Persistent, Body: body}
}

func confirming(connection *amqp.Connection) *amqp.Channel {
	channel := must(connection.Channel())
	check(channel.Confirm(false))
	return channel
}

// relaySingly is what most write: some goroutines, each publishes, waits for the confirm, acks.
func relaySingly(connection *amqp.Connection, deliveries <-chan amqp.Delivery, exchange string, concurrency int) {
	channel := confirming(connection)
	for range concurrency {
		go func() {
			for delivery := range deliveries {
				handle(delivery.Body)
				confirm := must(channel.PublishWithDeferredConfirmWithContext(context.Background(), exchange, "", true, false, outgoing(delivery.Body)))
				if !confirm.Wait() {
					log.Fatal("nacked")
				}
				check(delivery.Ack(false))
			}
		}()
	}
	select {}
}

// relayBatched pipelines: publish at once, await the confirms in order, ack with `multiple`.
func relayBatched(connection *amqp.Connection, deliveries <-chan amqp.Delivery, exchange string, acks int, stamp bool) {
	channel := confirming(connection)
	type pending struct {
		delivery amqp.Delivery
		confirm  *amqp.DeferredConfirmation
	}
	sent := make(chan pending, 1000)
	go func() {
		open := 0
		for one := range sent {
			if !one.confirm.Wait() {
				log.Fatal("nacked")
			}
			open++
			if open >= acks || len(sent) == 0 {
				check(one.delivery.Ack(true))
				open = 0
			}
		}
	}()
	for delivery := range deliveries {
		handle(delivery.Body)
		message := outgoing(delivery.Body)
		if stamp {
			message.MessageId, message.Timestamp = randomID(), time.Now()
		}
		confirm := must(channel.PublishWithDeferredConfirmWithContext(context.Background(), exchange, "", true, false, message))
		sent <- pending{delivery, confirm}
	}
}

// randomID makes a UUID of version 4.
func randomID() string {
	var raw [16]byte
	must(rand.Read(raw[:]))
	raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

func fill(channel *amqp.Channel, queue string, count int, body func(int) []byte) {
	check(channel.Confirm(false))
	var confirms []*amqp.DeferredConfirmation
	for number := range count {
		confirms = append(confirms, must(channel.PublishWithDeferredConfirmWithContext(context.Background(), "", queue, false, false, outgoing(body(number)))))
		if len(confirms) == 1000 {
			await(confirms)
			confirms = confirms[:0]
		}
	}
	await(confirms)
}

func await(confirms []*amqp.DeferredConfirmation) {
	for _, confirm := range confirms {
		if !confirm.Wait() {
			log.Fatal("nacked")
		}
	}
}

// latency prints one JSON object: milliseconds from publishing a message until its answer arrived.
func latency(connection *amqp.Connection, channel *amqp.Channel, queue, answers string, count, rate int, body func(int) []byte) {
	sent := make([]time.Time, count)
	incoming := must(must(connection.Channel()).Consume(answers, "", true, false, false, false, nil))
	took := make([]float64, 0, count)
	done := make(chan struct{})
	go func() {
		for delivery := range incoming {
			var order Order
			check(json.Unmarshal(delivery.Body, &order))
			took = append(took, time.Since(sent[*order.ID]).Seconds()*1000)
			if len(took) == count {
				close(done)
				return
			}
		}
	}()
	start := time.Now()
	for number := range count {
		time.Sleep(time.Until(start.Add(time.Duration(number) * time.Second / time.Duration(rate))))
		sent[number] = time.Now()
		check(channel.PublishWithContext(context.Background(), "", queue, false, false, outgoing(body(number))))
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		log.Fatal("answers are missing after 30 s")
	}
	sort.Float64s(took)
	at := func(share float64) float64 { return took[min(int(share*float64(count)), count-1)] }
	fmt.Printf(`{"p50": %.3f, "p95": %.3f, "p99": %.3f, "max": %.3f}`+"\n", at(.5), at(.95), at(.99), took[count-1])
}

func template(path string) func(int) []byte {
	text := string(must(os.ReadFile(path)))
	before, after, ok := strings.Cut(text, "NUMBER")
	if !ok {
		log.Fatalf("%s has no NUMBER", path)
	}
	return func(number int) []byte { return fmt.Appendf(nil, "%s%d%s", before, number, after) }
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}
