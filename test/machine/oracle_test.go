package machine

import (
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// fact is what is true of a key in one version of the store.
type fact struct {
	exists, revoked, disabled bool
	notAfter                  int64
}

// version is the truth from one journal row on.
type version struct {
	seq      int64
	keys     map[string]fact // by id
	disabled map[string]bool // owners
}

func (v *version) good(k *key, at time.Time) bool {
	f := v.keys[k.id]
	return f.exists && !f.revoked && !f.disabled && !v.disabled[k.owner] && (f.notAfter == 0 || at.UnixMilli() < f.notAfter)
}

// oracle knows the whole truth at every time of the store's present history,
// and judges every answer by it.
type oracle struct {
	w        *world
	versions []version
	saved    map[string][]version // of each backup
	waited   int64                // --wait returned for this row
	restores int
	open     []*pending
	verdict  string // the first violation
}

// pending is a request under way.
type pending struct {
	n       *node
	k       *key
	at      time.Time // by the gateway's clock
	answer  <-chan auth.Verdict
	good    bool // it was good at some time since what the gateway had applied when it arrived
	bad     bool
	waited  bool // it was good at some time since what --wait returned for
	trusted bool
	// overtaken: a change was made since what it waits for began.
	overtaken bool
	excused   bool // the store could not be reached meanwhile, or time passed
	text      string
}

// commit is to be called after every change of the operator's, with what it
// changed.
func (o *oracle) commit(edit func(*version)) {
	next := version{keys: map[string]fact{}, disabled: map[string]bool{}}
	if n := len(o.versions); n > 0 {
		for id, f := range o.versions[n-1].keys {
			next.keys[id] = f
		}
		for name, d := range o.versions[n-1].disabled {
			next.disabled[name] = d
		}
	}
	edit(&next)
	fleet, err := o.w.db.Fleet(o.w.t.Context(), auth.Point{})
	o.w.must(err)
	next.seq = fleet.Head.Seq
	o.versions = append(o.versions, next)
	for _, n := range o.w.nodes {
		n.stirred = true
	}
	for _, p := range o.open {
		p.see(&next)
		p.overtaken = true
	}
}

func (p *pending) see(v *version) {
	if v.good(p.k, p.at) {
		p.good, p.waited = true, true
	} else {
		p.bad = true
	}
}

// since calls visit for the versions that were true from row seq on.
func (o *oracle) since(seq int64, visit func(*version)) {
	for i := range o.versions {
		if i == len(o.versions)-1 || o.versions[i+1].seq > seq {
			visit(&o.versions[i])
		}
	}
}

// arrive notes a request before it begins.
func (o *oracle) arrive(n *node, k *key) *pending {
	cursor, _ := n.follower.Position()
	now := n.clock()
	p := &pending{n: n, k: k, at: now, trusted: n.follower.Trusted(now), excused: n.away || n.stained, overtaken: n.stirred}
	if n.restores.Load() < int64(o.restores) { // it can't know that the history is another one
		p.good, p.bad = true, true
	} else {
		o.since(cursor, p.see)
	}
	p.waited = o.waited == 0
	o.since(o.waited, func(v *version) { p.waited = p.waited || v.good(k, now) })
	p.text = fmt.Sprintf("%s asked %s about %s when it had applied %d of %d", k.id, n.name, k.owner, cursor, o.versions[len(o.versions)-1].seq)
	o.open = append(o.open, p)
	return p
}

// settle judges the requests that have been answered.
func (o *oracle) settle() {
	busy := map[*node]bool{}
	for _, st := range o.w.stops.list() {
		busy[st.node] = true
	}
	for _, n := range o.w.nodes {
		n.stained, n.stirred = n.stained && busy[n], n.stirred && busy[n]
	}
	left := o.open[:0]
	for _, p := range o.open {
		select {
		case v := <-p.answer:
			o.judge(p, &v)
		default:
			left = append(left, p)
		}
	}
	o.open = left
}

func (o *oracle) judge(p *pending, v *auth.Verdict) {
	wrong := ""
	switch v.Outcome {
	case auth.Allow:
		if !p.good {
			wrong = "let in, though nothing since what the gateway had applied makes it good"
		} else if !p.waited {
			wrong = "let in, though --wait had returned"
		}
	case auth.Deny:
		if !p.bad {
			wrong = "denied, though it was good all the time: " + v.Reason.String()
		}
	default:
		wrong = p.undecided(v.Cause)
	}
	if wrong != "" && o.verdict == "" {
		o.verdict = p.text + ": " + wrong
	}
}

// undecided says why a request may not be left undecided.
func (p *pending) undecided(cause error) string {
	switch {
	case p.excused || !p.trusted:
		return ""
	case errors.Is(cause, auth.ErrFenced) && p.overtaken:
		return ""
	}
	return fmt.Sprintf("not decided, though nothing was in the way: %v", cause)
}

// excuse marks the requests of a gateway, or of all, that may stay undecided,
// with those that will join what is under way now.
func (o *oracle) excuse(n *node) {
	for _, other := range o.w.nodes {
		other.stained = other.stained || n == nil || n == other
	}
	for _, p := range o.open {
		if n == nil || p.n == n {
			p.excused = true
		}
	}
}

// backup remembers the truth that a backup holds.
func (o *oracle) backup(path string) { o.saved[path] = append([]version(nil), o.versions...) }

// restore makes a backup's truth the present one.
func (o *oracle) restore(path string) {
	o.restores++
	o.waited = 0 // what it waited for may be undone
	o.versions = append([]version(nil), o.saved[path]...)
	for _, p := range o.open {
		p.good, p.bad, p.waited, p.excused = true, true, true, true
	}
	o.commit(func(*version) {})
}
