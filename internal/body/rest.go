package body

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Grace is how long the body of a refused request may still arrive before the
// connection is cut.
const Grace = 500 * time.Millisecond

const (
	patience = Grace / 2             // how long a body that keeps arriving may delay the answer
	pause    = 25 * time.Millisecond // how long it may stand still meanwhile
	mostRest = 64 << 20              // how much of it is read, in bytes
)

// Rest is the body of an HTTP/1 request that is answered without reading it. Many
// clients, and most proxies, write a whole request before they read the answer. If
// the server closes the connection first, the system resets it and discards the
// answer. So the rest of the body is read and thrown away (RFC 9112, 9.6), bounded
// by Grace and in size. A nil Rest has nothing to read.
type Rest struct {
	control *http.ResponseController
	body    io.Reader
	until   time.Time
	expects bool // the client waits for "100 Continue"
	done    chan struct{}
	stopped atomic.Bool
	read    atomic.Int64 // bytes
}

// Leave announces to the client that the connection ends with this answer, if the
// body of its request was not read, and returns the rest of that body. It returns
// nil if there is none, and over HTTP/2 and 3, where only the stream ends. Call it
// before the answer's headers are written.
func Leave(w http.ResponseWriter, r *http.Request) *Rest {
	if r.ProtoMajor != 1 || r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	w.Header().Set("Connection", "close")
	b := &Rest{control: http.NewResponseController(w), until: time.Now().Add(Grace), expects: r.Header.Get("Expect") != "", body: r.Body}
	_ = b.control.SetReadDeadline(b.until) // not every writer can do it: Finish does not rely on it
	return b
}

// Settle reads while the body keeps arriving, for a quarter of a second at most:
// proxies that pass a request on while they read it have then sent all of it. Call
// it right before the answer is written. A client that waits for "100 Continue" is
// not asked to send anything.
func (b *Rest) Settle() {
	if b == nil || b.expects {
		return
	}
	b.start()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for before := int64(-1); ; {
		select {
		case <-b.done:
			return
		case <-timeout.C:
			return
		case <-tick.C:
			now := b.read.Load()
			if now == before {
				return
			}
			before = now
		}
	}
}

// Finish sends what was answered and reads on, until the body has ended or Grace
// is over. Call it when the whole answer is written.
func (b *Rest) Finish() {
	if b == nil {
		return
	}
	_ = b.control.Flush() // if the writer can't, the answer is sent later
	b.start()
	b.end()
}

// Discard reads the body until it has ended or Grace is over, for an answer that is
// written where nothing can read on behind it.
func (b *Rest) Discard() {
	if b == nil || b.expects {
		return
	}
	b.start()
	b.end()
}

// Without takes its body from a request that others answer, who would read it too.
func (b *Rest) Without(r *http.Request) {
	if b == nil {
		return
	}
	r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, 0, nil
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Expect"} {
		delete(r.Header, name)
	}
}

// end waits for the body's end, and stops reading when Grace is over.
func (b *Rest) end() {
	if b.ended(time.Until(b.until)) {
		return
	}
	// The server may have moved the deadline (Caddy's read_idle does).
	b.stopped.Store(true)
	_ = b.control.SetReadDeadline(time.Now())
	b.ended(Grace)
}

func (b *Rest) ended(within time.Duration) bool {
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case <-b.done:
		return true
	case <-timeout.C:
		return false
	}
}

func (b *Rest) start() {
	if b.done != nil {
		return
	}
	b.done = make(chan struct{})
	go func() {
		defer close(b.done)
		_, _ = io.CopyN(io.Discard, discarding{b}, mostRest)
	}()
}

// discarding counts what is read, and ends when it is to stop.
type discarding struct{ *Rest }

// Read implements io.Reader.
func (d discarding) Read(p []byte) (int, error) {
	if d.stopped.Load() {
		return 0, io.EOF
	}
	n, err := d.body.Read(p)
	d.read.Add(int64(n))
	return n, err
}
