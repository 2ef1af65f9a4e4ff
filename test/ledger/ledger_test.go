package ledger

import (
	"net/http"
	"testing"
	"time"
)

// TestWrong: the judge itself notices each kind of wrong answer.
func TestWrong(t *testing.T) {
	now := time.Now()
	stopped := &Credential{Class: Victim}
	stopped.StopsAt(now)
	stopped.ending.Store(now.UnixNano())
	for _, c := range []struct {
		cred   *Credential
		at     time.Time
		status int
		wrong  bool
	}{
		{&Credential{Class: Cached}, now, 200, false},
		{&Credential{Class: Cached}, now, 503, false},
		{&Credential{Class: Cached}, now, 401, true},
		{&Credential{Class: Cold}, now, 403, true},
		{&Credential{Class: Cold}, now, 0, true},
		{&Credential{Class: Cold}, now, 502, true},
		{&Credential{Class: Forged}, now, 401, false},
		{&Credential{Class: Forged}, now, 503, true},
		{&Credential{Class: Forged}, now, 200, true},
		{&Credential{Class: Public}, now, 200, false},
		{&Credential{Class: Public}, now, 503, true},
		{&Credential{Class: Revoked}, now, 200, true},
		{&Credential{Class: Revoked}, now, 503, false},
		{&Credential{Class: Victim}, now, 200, false},
		{&Credential{Class: Victim}, now, 401, true},
		{stopped, now.Add(-time.Second), 401, true},
		{stopped, now.Add(-time.Second), 200, false},
		{stopped, now.Add(time.Second), 200, true},
		{stopped, now.Add(time.Second), 401, false},
	} {
		if got := len(Wrong([]Entry{{Credential: c.cred, At: c.at, Status: c.status}})) > 0; got != c.wrong {
			t.Errorf("%s %d: wrong %v, want %v", c.cred.Class, c.status, got, c.wrong)
		}
	}
}

func TestSumAndRecovery(t *testing.T) {
	now := time.Now()
	good := &Credential{Class: Cached}
	var all []Entry
	for i := range 100 {
		all = append(all, Entry{good, now.Add(time.Duration(i) * time.Second), time.Duration(i) * time.Millisecond, http.StatusOK})
	}
	all[50].Status = http.StatusServiceUnavailable
	if s := SumOf(all); s.Requests != 100 || s.Unavailable != 1 || s.P50 != 50*time.Millisecond || s.P99 != 99*time.Millisecond {
		t.Errorf("%+v", s)
	}
	if d := Recovered(all, now.Add(49*time.Second)); d != time.Second+50*time.Millisecond {
		t.Errorf("recovered after %s", d)
	}
	if d := Recovered(all, now.Add(60*time.Second)); d != 0 {
		t.Errorf("recovered after %s", d)
	}
}
