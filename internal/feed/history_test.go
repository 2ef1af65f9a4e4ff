package feed

import (
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestHistory_HeadAfterAQuietTime: what was read while a row was the head may
// have been read until the next row came, so the row is known that long.
func TestHistory_HeadAfterAQuietTime(t *testing.T) {
	h := newHistory()
	begin := time.Now()
	row := func(seq int64, at time.Duration) {
		h.remember(auth.Change{Seq: seq, Row: auth.RowID{byte(seq)}, Fingerprints: []auth.Fingerprint{{byte(seq)}}}, begin.Add(at))
	}
	const memory = 10 * time.Minute
	forget := func(now time.Duration) { h.forget(begin.Add(now-memory), h.known[len(h.known)-1].seq) }
	row(1, 0)
	row(2, time.Second)
	forget(time.Hour) // a quiet hour
	if h.floor() != 2 {
		t.Fatalf("floor %d: the head is always known", h.floor())
	}
	row(3, time.Hour)
	forget(time.Hour + time.Second)
	if _, ok := h.rowAt(2); !ok || h.floor() != 2 {
		t.Errorf("floor %d: what was read at row 2 a second ago is refused", h.floor())
	}
	forget(time.Hour + memory + time.Second)
	if h.floor() != 3 {
		t.Errorf("floor %d: row 2 was the head longer ago than anything lives", h.floor())
	}
	if h.changedAbove(0, auth.FingerprintOf("nobody"), auth.Parents{}) || h.changedAbove(2, auth.Fingerprint{2}, auth.Parents{}) || !h.changedAbove(2, auth.Fingerprint{3}, auth.Parents{}) {
		t.Error("forgetting took the wrong changes")
	}
}
