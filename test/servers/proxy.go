package servers

import (
	"math/rand/v2"
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
	Drip            // answers come byte by byte, with a tenth of Delay between two
	Rubbish         // answers are replaced by bytes that are no answer
	Corrupt         // bytes of answers are changed at random
	Cut             // answers end after a few bytes, then the connection is reset
	Say             // every request is answered with what SetSay said, and not passed on
)

// Proxy stands between a client and a server and does what it is told.
type Proxy struct {
	Addr  string
	Delay time.Duration // of Slow

	target atomic.Pointer[string]
	fault  atomic.Int32
	say    atomic.Pointer[string]
	cut    atomic.Int64 // connections made before this time, unix nanoseconds, are half open
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

// SetSay answers every request with a text.
func (p *Proxy) SetSay(text string) {
	p.say.Store(&text)
	p.Set(Say)
}

// HalfOpen makes the server forget the connections there are, without telling
// the client, as a restart behind a firewall does. New ones work.
func (p *Proxy) HalfOpen() { p.cut.Store(time.Now().UnixNano()) }

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
	made := time.Now().UnixNano()
	done := make(chan struct{}, 2)
	go func() { p.pipe(server, client, false, made); done <- struct{}{} }()
	go func() { p.pipe(client, server, true, made); done <- struct{}{} }()
	<-done
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// pipe passes bytes on, or does what the fault says. dst is the client if
// these are answers.
func (p *Proxy) pipe(dst, src net.Conn, answers bool, made int64) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && made > p.cut.Load() && !p.pass(dst, src, buf[:n], answers) {
			return
		}
		if err != nil {
			return
		}
	}
}

// pass reports whether the connection goes on.
func (p *Proxy) pass(dst, src net.Conn, b []byte, answers bool) bool {
	f := p.is()
	switch {
	case f == Blackhole:
		return true
	case f == Say && !answers:
		_, err := src.Write([]byte(*p.say.Load()))
		return err == nil
	case !answers:
	case f == Slow:
		<-time.NewTimer(p.Delay).C
	case f == Drip:
		for i := range b {
			<-time.NewTimer(p.Delay / 10).C
			if _, err := dst.Write(b[i : i+1]); err != nil {
				return false
			}
		}
		return true
	case f == Rubbish:
		b = []byte("!?%$ this is no answer\r\n\x00\xff*9999999\r\n")
	case f == Corrupt:
		for i := range b {
			if rand.IntN(2) == 0 {
				b[i] ^= byte(1 + rand.IntN(255))
			}
		}
	case f == Cut:
		_, _ = dst.Write(b[:min(3, len(b))])
		if c, ok := dst.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		return false
	}
	_, err := dst.Write(b)
	return err == nil
}
