// The peer of the streaming tests: client-go, which is what kubectl and the API server are made of.
//
//	peer stream  [FLAGS] URL...   exec or attach, every URL at once; one line of JSON each, in order
//	peer forward [FLAGS] URL      bytes through a forwarded port and back, one line of JSON a connection
//	peer fetch   [FLAGS] URL      the body of a 200
//
// URL is what the runtime answered to Exec, Attach or PortForward, or a path of kubelet's server.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// What came of one stream.
type outcome struct {
	Sent       int64  `json:"sent"`
	SentSHA    string `json:"sent_sha256"`
	Stdout     int64  `json:"stdout"`
	StdoutSHA  string `json:"stdout_sha256"`
	StdoutText string `json:"stdout_text"`
	StderrText string `json:"stderr_text"`
	Exit       int    `json:"exit"`
	Error      string `json:"error"`
	Millis     int64  `json:"ms"`
}

// Counts and hashes what is written to it; keeps the first 4 KiB; calls first once.
type sink struct {
	mutex sync.Mutex
	hash  hash.Hash
	count int64
	head  bytes.Buffer
	first func()
}

func newSink(first func()) *sink { return &sink{hash: sha256.New(), first: first} }

func (s *sink) Write(data []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.hash.Write(data)
	if s.count == 0 && len(data) > 0 && s.first != nil {
		s.first()
	}
	s.count += int64(len(data))
	if room := 4096 - s.head.Len(); room > 0 {
		s.head.Write(data[:min(room, len(data))])
	}
	return len(data), nil
}

func (s *sink) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// Reads a text, then `count` bytes that look random and are the same each time, then ends, or waits
// for ever where it is to be held open.
type source struct {
	sink *sink
	from io.Reader
	hold bool
}

func newSource(text string, count int64, hold bool) *source {
	random := io.LimitReader(rand.New(rand.NewSource(1)), count)
	return &source{sink: newSink(nil), from: io.MultiReader(strings.NewReader(text), random), hold: hold}
}

func (s *source) Read(data []byte) (int, error) {
	n, err := s.from.Read(data)
	_, _ = s.sink.Write(data[:n])
	if n == 0 && err == io.EOF && s.hold {
		select {}
	}
	return n, err
}

// Terminal sizes, one after the other.
type sizes struct{ left []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		select {}
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

func config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func executor(transport, address string) (remotecommand.Executor, error) {
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutor(config(), "GET", address)
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutor(config(), "POST", parsed)
}

type streaming struct {
	transport, text, sizes      string
	send                        int64
	stdin, stdout, stderr, hold bool
	tty                         bool
}

func (options streaming) run(address string, first func()) (out outcome) {
	began := time.Now()
	stdin := newSource(options.text, options.send, options.hold)
	stdout, stderr := newSink(first), newSink(nil)
	request := remotecommand.StreamOptions{Tty: options.tty}
	if options.stdin {
		request.Stdin = stdin
	}
	if options.stdout {
		request.Stdout = stdout
	}
	if options.stderr && !options.tty {
		request.Stderr = stderr
	}
	if options.tty && options.sizes != "" {
		queue := &sizes{}
		for _, word := range strings.Split(options.sizes, ",") {
			var size remotecommand.TerminalSize
			if _, err := fmt.Sscanf(word, "%dx%d", &size.Width, &size.Height); err != nil {
				out.Error = err.Error()
				return
			}
			queue.left = append(queue.left, size)
		}
		request.TerminalSizeQueue = queue
	}
	run, err := executor(options.transport, address)
	if err == nil {
		err = run.StreamWithContext(context.Background(), request)
	}
	var code utilexec.CodeExitError
	if errors.As(err, &code) {
		out.Exit = code.Code
	} else if err != nil {
		out.Error = err.Error()
	}
	out.Sent, out.SentSHA = stdin.sink.count, stdin.sink.sum()
	out.Stdout, out.StdoutSHA, out.StdoutText = stdout.count, stdout.sum(), stdout.head.String()
	out.StderrText = stderr.head.String()
	out.Millis = time.Since(began).Milliseconds()
	return
}

func printAll(outcomes []outcome) {
	encoder := json.NewEncoder(os.Stdout)
	for _, out := range outcomes {
		if err := encoder.Encode(out); err != nil {
			fatal(err)
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "peer:", err)
	os.Exit(1)
}

func stream(words []string) {
	var options streaming
	var announce bool
	flags := flag.NewFlagSet("stream", flag.ExitOnError)
	flags.StringVar(&options.transport, "transport", "spdy", "spdy or websocket")
	flags.StringVar(&options.text, "text", "", "sent first on stdin")
	flags.Int64Var(&options.send, "send", 0, "bytes sent on stdin after the text")
	flags.BoolVar(&options.hold, "hold", false, "do not end stdin")
	flags.BoolVar(&options.stdin, "stdin", false, "ask for stdin")
	flags.BoolVar(&options.stdout, "stdout", true, "ask for stdout")
	flags.BoolVar(&options.stderr, "stderr", true, "ask for stderr")
	flags.BoolVar(&options.tty, "tty", false, "a terminal")
	flags.StringVar(&options.sizes, "sizes", "", "terminal sizes: 80x24,100x30")
	flags.BoolVar(&announce, "announce", false, "print `running` once every stream has had output")
	_ = flags.Parse(words)
	addresses := flags.Args()
	outcomes := make([]outcome, len(addresses))
	var running, done sync.WaitGroup
	running.Add(len(addresses))
	for i, address := range addresses {
		done.Add(1)
		go func() {
			defer done.Done()
			outcomes[i] = options.run(address, running.Done)
		}()
	}
	if announce {
		running.Wait()
		fmt.Println("running")
	}
	done.Wait()
	printAll(outcomes)
}

func dialer(transport, address string) (httpstream.Dialer, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(parsed, config())
	}
	tripper, upgrader, err := spdy.RoundTripperFor(config())
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: tripper}, "POST", parsed), nil
}

// What the library complains of, for the outcome.
type complaints struct {
	mutex sync.Mutex
	text  strings.Builder
}

func (c *complaints) add(_ context.Context, err error, message string, _ ...any) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	fmt.Fprintln(&c.text, message, err)
}

// Sends bytes to a local port, ends its own direction, and reads until the other one ends.
func through(port uint16, send int64) (out outcome) {
	began := time.Now()
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		out.Error = err.Error()
		return
	}
	defer connection.Close()
	from, to := newSource("", send, false), newSink(nil)
	go func() {
		_, _ = io.Copy(connection, from)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	if _, err := io.Copy(to, connection); err != nil {
		out.Error = err.Error()
	}
	out.Sent, out.SentSHA = from.sink.count, from.sink.sum()
	out.Stdout, out.StdoutSHA, out.StdoutText = to.count, to.sum(), to.head.String()
	out.Millis = time.Since(began).Milliseconds()
	return
}

func forward(words []string) {
	flags := flag.NewFlagSet("forward", flag.ExitOnError)
	transport := flags.String("transport", "spdy", "spdy or websocket")
	port := flags.Int("port", 0, "the port in the pod")
	send := flags.Int64("send", 0, "bytes sent on each connection")
	connections := flags.Int("connections", 1, "connections at once")
	_ = flags.Parse(words)
	dial, err := dialer(*transport, flags.Arg(0))
	if err != nil {
		fatal(err)
	}
	said := &complaints{}
	runtime.ErrorHandlers = []runtime.ErrorHandler{said.add}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dial, []string{fmt.Sprintf("0:%d", *port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		fatal(fmt.Errorf("forward: %w", err))
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		fatal(err)
	}
	outcomes := make([]outcome, *connections)
	var done sync.WaitGroup
	for i := range outcomes {
		done.Add(1)
		go func() {
			defer done.Done()
			outcomes[i] = through(ports[0].Local, *send)
		}()
	}
	done.Wait()
	close(stop)
	if err := <-ended; err != nil {
		said.add(context.Background(), err, "forwarding ended:")
	}
	said.mutex.Lock()
	defer said.mutex.Unlock()
	for i := range outcomes {
		outcomes[i].StderrText = said.text.String()
	}
	printAll(outcomes)
}

func fetch(words []string) {
	flags := flag.NewFlagSet("fetch", flag.ExitOnError)
	method := flags.String("method", "GET", "the method")
	_ = flags.Parse(words)
	transport, err := rest.TransportFor(config())
	if err != nil {
		fatal(err)
	}
	request, err := http.NewRequest(*method, flags.Arg(0), nil)
	if err != nil {
		fatal(err)
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(answer.Body)
		fatal(fmt.Errorf("%s: %s", answer.Status, body))
	}
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		fatal(err)
	}
}

func main() {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "stream":
			stream(os.Args[2:])
			return
		case "forward":
			forward(os.Args[2:])
			return
		case "fetch":
			fetch(os.Args[2:])
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: peer stream|forward|fetch [FLAGS] URL...")
	os.Exit(2)
}
