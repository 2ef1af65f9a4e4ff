package outbound

import (
	"errors"
	"io"
	"sync"
)

// replay is a request's body that may be sent twice: what the first attempt
// reads is kept while it is not too much. Nothing is read before somebody wants
// it, and nobody waits for a read but who reads, so streams stream. A nil replay
// is no body.
type replay struct {
	body io.ReadCloser
	most int64

	mu      sync.Mutex // guards what follows; not held while the body is read
	read    sync.Cond  // a read has ended
	reading bool
	attempt int // readers of earlier ones get nothing more
	keeping bool
	kept    []byte
	lost    bool  // something was read that is not kept
	end     error // what ended the body
	closed  bool  // the present attempt is done with it
	last    bool  // there is no other attempt
	given   bool  // it was closed
	late    bool  // it is to be closed when the read under way has ended
}

// errOtherAttempt ends an attempt that was given up.
var errOtherAttempt = errors.New("the request is not sent any more")

// newReplay keeps at most most bytes; negative: none.
func newReplay(body io.ReadCloser, most int64) *replay {
	b := &replay{body: body, most: most, keeping: most >= 0}
	b.read.L = &b.mu
	return b
}

// reader returns the body for the present attempt.
func (b *replay) reader() io.ReadCloser {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &replayReader{b: b, attempt: b.attempt}
}

// again prepares another attempt and reports whether there can be one.
func (b *replay) again() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost {
		return false
	}
	b.attempt++
	b.closed, b.keeping = false, false // there is no third
	b.read.Broadcast()
	return true
}

// finish says that there is no other attempt: nothing more is kept, and closing
// closes.
func (b *replay) finish() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.keeping, b.last = false, true
	if b.attempt == 0 {
		b.kept = nil // its only reader has read all of it
	}
	now := b.closed && !b.reading
	b.late = b.closed && b.reading // closing may wait for the read, and that for the client
	b.mu.Unlock()
	if now {
		_ = b.close()
	}
}

// abandon says that nobody wants the body any more: it is closed, once a read
// that is under way has ended.
func (b *replay) abandon() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.attempt++
	b.keeping, b.last, b.kept = false, true, nil
	b.late = b.reading
	late := b.late
	b.read.Broadcast()
	b.mu.Unlock()
	if !late {
		_ = b.close()
	}
}

// close closes the body, once: who made it may use it for another request then.
func (b *replay) close() error {
	b.mu.Lock()
	given := b.given
	b.given = true
	b.mu.Unlock()
	if given {
		return nil
	}
	return b.body.Close()
}

type replayReader struct {
	b       *replay
	attempt int
	at      int  // of what was kept; guarded by b.mu
	done    bool // it was closed; guarded by b.mu
}

// Read implements io.Reader.
func (r *replayReader) Read(p []byte) (int, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case r.attempt != b.attempt || r.done:
			return 0, errOtherAttempt
		case r.at < len(b.kept):
			n := copy(p, b.kept[r.at:])
			if r.at += n; r.at == len(b.kept) && !b.keeping {
				b.kept, r.at = nil, 0
			}
			return n, nil
		case b.end != nil:
			return 0, b.end
		}
		if !b.reading {
			return r.readOn(p)
		}
		b.read.Wait() // an earlier attempt reads what is ours
	}
}

// readOn reads from the body itself. b.mu is held, but not meanwhile.
func (r *replayReader) readOn(p []byte) (int, error) {
	b := r.b
	b.reading = true
	b.mu.Unlock()
	n, err := b.body.Read(p)
	b.mu.Lock()
	b.reading, b.end = false, err
	b.read.Broadcast()
	switch {
	case b.late:
		b.mu.Unlock()
		_ = b.close()
		b.mu.Lock()
		return n, err
	case r.attempt != b.attempt: // it belongs to the next one
		b.kept = append(b.kept, p[:n]...)
		return 0, errOtherAttempt
	case b.keeping && int64(len(b.kept)+n) <= b.most:
		b.kept = append(b.kept, p[:n]...)
		r.at += n
	case n > 0:
		b.lost, b.kept, r.at = true, nil, 0
	}
	return n, err
}

// Close implements io.Closer.
func (r *replayReader) Close() error {
	b := r.b
	b.mu.Lock()
	if r.attempt != b.attempt || b.closed {
		b.mu.Unlock()
		return nil
	}
	r.done, b.closed = true, true
	b.read.Broadcast()
	last := b.last
	b.mu.Unlock()
	if last {
		return b.close()
	}
	return nil
}
