package caddymodule

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// maxRefusals bounds how many credentials' refusals are kept until they are
// written: in a round more credentials are left out.
const maxRefusals = 1000

// refusalLog collects when and why credentials that exist were refused last.
type refusalLog struct {
	mu   sync.Mutex // guards last
	last map[string]auth.Refused
}

// note keeps the refusal of a credential.
func (l *refusalLog) note(id, reason string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.last[id]; !known && len(l.last) >= maxRefusals {
		return
	}
	if l.last == nil {
		l.last = map[string]auth.Refused{}
	}
	l.last[id] = auth.Refused{CredentialID: id, At: now.UnixMilli(), Reason: reason}
}

func (l *refusalLog) take() []auth.Refused {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []auth.Refused
	for _, r := range l.last {
		out = append(out, r)
	}
	l.last = nil
	return out
}

// writeRefusals writes the refusals collected since the last round. What can't
// be written is lost: the next refusal is written again.
func (rt *runtime) writeRefusals() {
	db := rt.db.Load()
	if db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := db.RecordRefusals(ctx, rt.refusals.take()); err != nil {
		rt.logger().Warn("writing refusals", zap.Error(err))
	}
}
