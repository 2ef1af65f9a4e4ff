package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Remote keeps values by name, for a while. Get of a missing one is
// auth.ErrNotFound.
type Remote interface {
	Get(ctx context.Context, name string) ([]byte, error)
	Set(ctx context.Context, name string, value []byte, ttl time.Duration) error
}

// Envelope names records and seals them; see secret.Envelope.
type Envelope interface {
	Name(kind string, configuration []byte, fp auth.Fingerprint) string
	Seal(name string, plain []byte) []byte
	Open(name string, sealed []byte) ([]byte, error)
}

// Record is an identity as it was read from the store.
type Record struct {
	Verdict auth.Verdict
	Point   auth.Point // where in the store's history
	Checked time.Time  // when; it bounds how long it is kept, not whether it is true
}

// Shared is the tier that gateways share: sealed records of identities, never
// of denials. Nothing in it is trusted until it was opened and passed the
// fence. It is immutable and safe for concurrent use.
type Shared struct {
	remote   Remote
	envelope Envelope
	prefix   string
	ttl      time.Duration
	now      func() time.Time
}

// Defaults of the shared tier.
const (
	DefaultSharedTTL    = 10 * time.Minute
	DefaultSharedPrefix = "caddy-auth:"
)

// About says what records are about, so that no two kinds of verification and
// no two configurations ever read each other's. The zero About is API keys,
// which depend on no configuration but the store's, whose id is in every name.
type About struct {
	Kind   string        // of credential; empty: keys
	Source auth.Source   // by which configuration
	TTL    time.Duration // how old a record may be, if that is less than the tier's
}

func (a About) name(e Envelope, fp auth.Fingerprint) string {
	if a.Kind == "" {
		return e.Name("key", nil, fp)
	}
	return e.Name(a.Kind, a.Source[:], fp)
}

func (a About) within(ttl time.Duration) time.Duration {
	if a.TTL > 0 {
		return min(a.TTL, ttl)
	}
	return ttl
}

// sharedVersion is the layout of a record: it, the epoch, the sequence, the
// row id, the time of the check, then the verdict's own record.
const (
	sharedVersion = 2
	sharedHead    = 1 + 16 + 8 + 16 + 8
)

// NewShared returns a tier over remote. Records live for ttl there.
func NewShared(remote Remote, envelope Envelope, prefix string, ttl time.Duration) *Shared {
	if ttl <= 0 {
		ttl = DefaultSharedTTL
	}
	return &Shared{remote, envelope, prefix, ttl, time.Now}
}

// WithClock returns the same tier that goes by another clock.
func (s *Shared) WithClock(now func() time.Time) *Shared {
	other := *s
	other.now = now
	return &other
}

// Get returns the record of a kind about fp. There is none: auth.ErrNotFound. There is
// one that this store did not seal under that name, or that is no identity:
// auth.ErrCorrupt. It can't be asked: auth.ErrUnavailable.
func (s *Shared) Get(ctx context.Context, about About, fp auth.Fingerprint) (Record, error) {
	var r Record
	name := s.prefix + about.name(s.envelope, fp)
	sealed, err := s.remote.Get(ctx, name)
	if err != nil {
		return r, err
	}
	plain, err := s.envelope.Open(name, sealed)
	if err != nil { // another key is no better than a forgery here
		return r, fmt.Errorf("opening a shared record: %w", errors.Join(auth.ErrCorrupt, err))
	}
	if err := parseShared(&r, plain); err != nil {
		return r, err
	}
	if ttl, age := about.within(s.ttl), s.now().Sub(r.Checked); age >= ttl || age < -ttl {
		return r, auth.ErrNotFound // replayed after its time; the fence would judge it too
	}
	if r.Verdict.Source != about.Source { // its name says so already
		return r, fmt.Errorf("a record of another source: %w", auth.ErrCorrupt)
	}
	return r, nil
}

// Put stores a record of a kind about fp. Only identities are stored; anything
// else is auth.ErrInvalid.
func (s *Shared) Put(ctx context.Context, about About, fp auth.Fingerprint, r Record) error {
	if r.Verdict.Outcome != auth.Allow {
		return auth.Invalidf("only identities are shared")
	}
	name := s.prefix + about.name(s.envelope, fp)
	return s.remote.Set(ctx, name, s.envelope.Seal(name, appendShared(nil, &r)), about.within(s.ttl))
}

func appendShared(dst []byte, r *Record) []byte {
	dst = append(dst, sharedVersion)
	dst = append(dst, r.Point.Epoch[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Point.Seq))
	dst = append(dst, r.Point.Row[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Checked.UnixMilli()))
	return appendRecord(dst, &r.Verdict)
}

func parseShared(r *Record, b []byte) error {
	if len(b) > 0 && b[0] != sharedVersion {
		return auth.ErrNotFound // genuine, but of another release
	}
	if len(b) < sharedHead {
		return fmt.Errorf("%w: %w", errRecord, auth.ErrCorrupt)
	}
	b = b[1:]
	b = b[copy(r.Point.Epoch[:], b):]
	r.Point.Seq, b = int64(binary.BigEndian.Uint64(b)), b[8:]
	b = b[copy(r.Point.Row[:], b):]
	r.Checked, b = time.UnixMilli(int64(binary.BigEndian.Uint64(b))), b[8:]
	if err := parseRecord(&r.Verdict, b); err != nil || r.Verdict.Outcome != auth.Allow {
		return fmt.Errorf("%w: %w", errRecord, auth.ErrCorrupt)
	}
	return nil
}
