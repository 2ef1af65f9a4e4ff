package oauth

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// fullFor is how long it is remembered that a client has all the tokens that it
// may: one of them may be revoked meanwhile.
const fullFor = time.Second

// mostFull is how many clients and keys are remembered.
const mostFull = 10_000

// fullHolders remembers, for a moment, who has all the tokens that it may, so that
// who asks on costs no transaction each time. It is safe for concurrent use.
type fullHolders struct {
	mu    sync.Mutex // guards until
	until map[string]fullUntil
}

type fullUntil struct{ noted, room time.Time }

func holderName(t *auth.AccessToken) string {
	if t.KeyID != "" {
		return "key " + t.KeyID
	}
	return "client " + t.ClientID
}

// wait is how long a token's holder has to wait, by what is remembered; 0: nothing
// is.
func (f *fullHolders) wait(t *auth.AccessToken, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	u, there := f.until[holderName(t)]
	if !there || now.Sub(u.noted) >= fullFor {
		return 0
	}
	return max(0, u.room.Sub(now))
}

func (f *fullHolders) note(t *auth.AccessToken, now time.Time, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil || len(f.until) >= mostFull {
		f.until = map[string]fullUntil{}
	}
	f.until[holderName(t)] = fullUntil{now, now.Add(wait)}
}

// tooManyTokens is the answer to who has all the tokens that it may.
func tooManyTokens(most int, wait time.Duration, client string) *Failure {
	return &Failure{
		Status: http.StatusTooManyRequests, Code: temporarilyUnavailable, Reason: "too_many_tokens", Retry: max(wait, time.Second), ClientID: client,
		Description: fmt.Sprintf("there are %d living tokens, which is all there may be: keep each token and use it until it expires", most),
	}
}
