package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func request(addr, key string) []byte {
	return []byte("GET /v1/orders?page=2 HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: load\r\nAccept: */*\r\nX-API-Key: " + key + "\r\n\r\n")
}

func keyRequests(addr string, keys []string) [][]byte {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		out[i] = request(addr, k)
	}
	return out
}

// forged changes each key's last character.
func forged(keys []string) []string {
	out := make([]string, len(keys))
	for i, k := range keys {
		last := "0"
		if k[len(k)-1] == '0' {
			last = "1"
		}
		out[i] = k[:len(k)-1] + last
	}
	return out
}

// load is requests that are sent in turn, over and over; the turn goes on from
// one slice to the next.
type load struct {
	requests [][]byte
	next     atomic.Int64
}

func (l *load) take() []byte { return l.requests[int(l.next.Add(1)-1)%len(l.requests)] }

// shuffled is a load in random order: keys that were put in together lie
// together.
func shuffled(requests [][]byte) *load {
	rand.Shuffle(len(requests), func(i, k int) { requests[i], requests[k] = requests[k], requests[i] })
	return &load{requests: requests}
}

// run sends requests over conns connections, each as soon as the last was
// answered, until ctx ends, and returns how many were answered with the wanted
// status. Any other answer is an error.
func run(ctx context.Context, addr string, requests *load, conns, want int) (int, error) {
	var total atomic.Int64
	err := overEach(addr, conns, want, func(_ int, c *conn) error {
		for ctx.Err() == nil {
			if err := c.do(requests.take()); err != nil {
				return err
			}
			total.Add(1)
		}
		return nil
	})
	return int(total.Load()), err
}

// overEach opens connections and uses them at the same time.
func overEach(addr string, conns, want int, use func(i int, c *conn) error) error {
	var wg sync.WaitGroup
	errs := make([]error, conns)
	for i := range conns {
		wg.Go(func() {
			c, err := dial(addr, want)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			errs[i] = use(i, c)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// once sends every request once.
func once(ctx context.Context, addr string, requests [][]byte, conns, want int) error {
	var next atomic.Int64
	return overEach(addr, conns, want, func(_ int, c *conn) error {
		for k := int(next.Add(1)) - 1; k < len(requests); k = int(next.Add(1)) - 1 {
			if err := errors.Join(ctx.Err(), c.do(requests[k])); err != nil {
				return err
			}
		}
		return nil
	})
}

// open sends requests at a rate, whether earlier ones were answered or not, for
// a time, and returns how long each took from the moment in which it was due.
func open(ctx context.Context, addr string, requests *load, rate, conns int, length time.Duration, want int) ([]time.Duration, error) {
	due := make(chan time.Time, rate*int(length/time.Second+1))
	took := make([][]time.Duration, conns)
	done := make(chan error, 1)
	go func() {
		done <- overEach(addr, conns, want, func(i int, c *conn) error {
			for at := range due {
				if err := c.do(requests.take()); err != nil {
					return err
				}
				took[i] = append(took[i], time.Since(at))
			}
			return nil
		})
	}()
	began := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		at := time.Duration(n) * time.Second / time.Duration(rate)
		if at > length {
			break
		}
		pause(at - time.Since(began))
		due <- began.Add(at)
	}
	close(due)
	err := <-done
	return slices.Concat(took...), err
}

// pause waits more exactly than Go's timers do.
func pause(d time.Duration) {
	if d > 0 {
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil)
	}
}

// quantile of durations, in microseconds.
func quantile(took []time.Duration, q float64) float64 {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return float64(took[min(int(q*float64(len(took))), len(took)-1)].Nanoseconds()) / 1000
}

// conn is a connection that asks and reads cheaply.
type conn struct {
	net.Conn
	r    *bufio.Reader
	want int
}

func dial(addr string, want int) (*conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c), want}, nil
}

func (c *conn) do(request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	status, err := readResponse(c.r)
	if err == nil && status != c.want {
		err = fmt.Errorf("status %d, want %d", status, c.want)
	}
	return err
}

// readResponse reads one response with a Content-Length.
func readResponse(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, fmt.Errorf("odd status line %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, err
	}
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	_, err = r.Discard(length)
	return status, err
}
