package outbound

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ownFor is how long the 401 of what refused a fresh credential too is taken
	// for the upstream's own, and not for one about the credential.
	ownFor = 10 * time.Second
	// maxOwn bounds what is remembered.
	maxOwn = 1000
)

// ownRefusals remembers what refused a credential that had just been renewed, by
// method, host and path: renewing it again would help nobody. The zero value is
// ready, and it is safe for concurrent use.
type ownRefusals struct {
	n atomic.Int32 // how many; mostly there are none

	mu sync.Mutex // guards at
	at map[string]time.Time
}

func refusalName(r *http.Request) string { return r.Method + " " + r.Host + r.URL.Host + r.URL.Path }

func (o *ownRefusals) has(r *http.Request, now time.Time) bool {
	if o.n.Load() == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	at, ok := o.at[refusalName(r)]
	return ok && now.Sub(at) < ownFor
}

func (o *ownRefusals) add(r *http.Request, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.at == nil {
		o.at = map[string]time.Time{}
	}
	if len(o.at) >= maxOwn {
		clear(o.at) // then they are learnt anew
	}
	o.at[refusalName(r)] = now
	o.n.Store(int32(len(o.at)))
}

func (o *ownRefusals) remove(r *http.Request) {
	if o.n.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.at, refusalName(r))
	o.n.Store(int32(len(o.at)))
}
