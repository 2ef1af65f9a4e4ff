package caddymodule

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// decisionBurst and decisionRefill bound the decision log: so many lines
	// at once per reason and credential, then one per refill.
	decisionBurst  = 20
	decisionRefill = time.Second
	// decisionKinds bounds how many pairs of reason and credential are
	// remembered.
	decisionKinds = 4096
)

// decisionLog writes refusals, rate-limited per reason and credential. A line
// after a gap says how many were left out.
type decisionLog struct {
	log *zap.Logger
	now func() time.Time

	mu      sync.Mutex // guards buckets
	buckets map[decisionKind]*decisionBucket
}

type decisionKind struct{ reason, credential string }

type decisionBucket struct {
	tokens     float64
	last       time.Time
	suppressed int
}

func newDecisionLog(log *zap.Logger) *decisionLog {
	return &decisionLog{log: log.Named("decision"), now: time.Now, buckets: map[decisionKind]*decisionBucket{}}
}

// write logs one refusal, or stream that ended, or counts it.
func (l *decisionLog) write(what, reason, credential string, fields ...zap.Field) {
	entry := l.log.Check(zapcore.InfoLevel, what)
	if entry == nil {
		return
	}
	ok, suppressed := l.take(decisionKind{reason, credential})
	if !ok {
		metrics.suppressed.Inc()
		return
	}
	fields = append(fields, zap.String("reason", reason))
	if credential != "" {
		fields = append(fields, zap.String("credential_id", credential))
	}
	if suppressed > 0 {
		fields = append(fields, zap.Int("suppressed", suppressed))
	}
	entry.Write(fields...)
}

func (l *decisionLog) take(k decisionKind) (ok bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.buckets[k]
	if b == nil {
		if len(l.buckets) >= decisionKinds {
			clear(l.buckets) // only the limits are forgotten
		}
		b = &decisionBucket{tokens: decisionBurst, last: now}
		l.buckets[k] = b
	}
	b.tokens = min(decisionBurst, b.tokens+now.Sub(b.last).Seconds()/decisionRefill.Seconds())
	b.last = now
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}
