package caddymodule

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestDecisionLog_LimitsAndCounts(t *testing.T) {
	core, seen := observer.New(zapcore.InfoLevel)
	l := newDecisionLog(zap.New(core))
	now := time.Now()
	l.now = func() time.Time { return now }
	for range 1000 {
		l.write("refused", "expired", "key_1")
	}
	if n := seen.Len(); n != decisionBurst {
		t.Errorf("%d lines at once, want %d", n, decisionBurst)
	}
	l.write("refused", "expired", "key_2")
	l.write("refused", "revoked", "key_1")
	if n := seen.Len(); n != decisionBurst+2 {
		t.Errorf("another key or reason is limited too: %d lines", n)
	}
	now = now.Add(decisionRefill)
	l.write("refused", "expired", "key_1")
	last := seen.All()[seen.Len()-1].ContextMap()
	if last["suppressed"] != int64(1000-decisionBurst) || last["reason"] != "expired" || last["credential_id"] != "key_1" {
		t.Errorf("line %v", last)
	}
	for i := range 3 * decisionKinds {
		l.write("refused", "x", string(rune(i)))
	}
	if len(l.buckets) > decisionKinds {
		t.Errorf("%d pairs are remembered", len(l.buckets))
	}
}
