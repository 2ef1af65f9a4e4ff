package outbound

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// replay is a request's body that may be sent twice: what the first attempt
// reads is kept while it is not too much. Nothing is read before somebody wants
// it, so streams stream. A nil replay is no body.
type replay struct {
	attempt atomic.Int32 // readers of earlier ones read nothing more
	keeping atomic.Bool

	reading sync.Mutex // held while the body is read; guards what follows
	kept    []byte
	most    int64
	end     error // what ended the body
	lost    bool  // something was read that is not kept

	closing sync.Mutex // guards what follows
	body    io.ReadCloser
	closed  bool // the present attempt has closed it
	last    bool // there is no other attempt
}

// errOtherAttempt ends an attempt that was given up.
var errOtherAttempt = errors.New("the request was sent again")

// newReplay keeps at most most bytes; negative: none.
func newReplay(body io.ReadCloser, most int64) *replay {
	b := &replay{body: body, most: most}
	b.keeping.Store(most >= 0)
	return b
}

// reader returns the body for the present attempt.
func (b *replay) reader() io.ReadCloser { return &replayReader{b: b, attempt: b.attempt.Load()} }

// again prepares another attempt and reports whether there can be one. It waits
// for a read that is under way.
func (b *replay) again() bool {
	if b == nil {
		return true
	}
	b.attempt.Add(1)
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.lost {
		return false
	}
	b.closing.Lock()
	b.closed = false
	b.closing.Unlock()
	b.keeping.Store(false) // there is no third
	return true
}

// finish says that there is no other attempt: nothing more is kept, and closing
// closes.
func (b *replay) finish() {
	if b == nil {
		return
	}
	b.keeping.Store(false)
	b.closing.Lock()
	defer b.closing.Unlock()
	if b.last = true; b.closed {
		_ = b.body.Close()
	}
}

type replayReader struct {
	b       *replay
	attempt int32
	at      int // of what was kept; read by one goroutine
}

// Read implements io.Reader.
func (r *replayReader) Read(p []byte) (int, error) {
	b := r.b
	b.reading.Lock()
	defer b.reading.Unlock()
	if r.attempt != b.attempt.Load() {
		return 0, errOtherAttempt
	}
	if r.at < len(b.kept) {
		n := copy(p, b.kept[r.at:])
		r.at += n
		return n, nil
	}
	if b.end != nil {
		return 0, b.end
	}
	n, err := b.body.Read(p)
	b.end = err
	switch {
	case b.keeping.Load() && int64(len(b.kept)+n) <= b.most:
		b.kept = append(b.kept, p[:n]...)
		r.at += n
	case n > 0:
		b.lost = true
		if r.attempt == 0 {
			b.kept, r.at = nil, 0
		}
	}
	return n, err
}

// Close implements io.Closer.
func (r *replayReader) Close() error {
	b := r.b
	b.closing.Lock()
	defer b.closing.Unlock()
	if r.attempt != b.attempt.Load() || b.closed {
		return nil
	}
	b.closed = true
	if b.last {
		return b.body.Close()
	}
	return nil
}
