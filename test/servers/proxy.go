package servers

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault is what a Proxy does to connections.
type Fault int32

// The faults.
const (
	Pass      Fault = iota
	Refuse          // connections are closed as soon as they are made
	Blackhole       // nothing is passed on or answered
	Slow            // answers come late, each by Delay
	Rubbish         // answers are replaced by bytes that are no answer
	Cut             // answers end after a few bytes, then the connection is reset
)

// Proxy stands between a client and a server and does what it is told.
type Proxy struct {
	Addr  string
	Delay time.Duration // of Slow

	target atomic.Pointer[string]
	fault  atomic.Int32
	mu     sync.Mutex
	conns  map[net.Conn]bool
	l      net.Listener
}

// StartProxy runs a proxy in front of target until the test ends.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), Delay: 200 * time.Millisecond, conns: map[net.Conn]bool{}, l: l}
	p.Retarget(target)
	t.Cleanup(func() { _ = l.Close(); p.Drop() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

// Set changes the fault. Connections that exist are affected too; with Refuse
// they are closed.
func (p *Proxy) Set(f Fault) {
	p.fault.Store(int32(f))
	if f == Refuse {
		p.Drop()
	}
}

// Retarget sends connections that are made from now on to another server.
func (p *Proxy) Retarget(addr string) { p.target.Store(&addr) }

func (p *Proxy) is() Fault { return Fault(p.fault.Load()) }

// Drop closes all connections there are.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if p.is() == Refuse {
		return
	}
	server, err := net.Dial("tcp", *p.target.Load())
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	done := make(chan struct{}, 2)
	go func() { p.pipe(server, client, false); done <- struct{}{} }()
	go func() { p.pipe(client, server, true); done <- struct{}{} }()
	<-done
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

func (p *Proxy) pipe(dst io.Writer, src io.Reader, answers bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			b := buf[:n]
			switch f := p.is(); {
			case f == Blackhole:
				continue
			case !answers:
			case f == Slow:
				timer := time.NewTimer(p.Delay)
				<-timer.C
			case f == Rubbish:
				b = []byte("!?%$ this is no answer\r\n\x00\xff*9999999\r\n")
			case f == Cut:
				_, _ = dst.Write(b[:min(3, n)])
				if c, ok := dst.(*net.TCPConn); ok {
					_ = c.SetLinger(0)
				}
				return
			}
			if _, err := dst.Write(b); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
