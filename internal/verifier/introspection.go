package verifier

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// DefaultIntrospectionTTL is how long an answer is kept.
const DefaultIntrospectionTTL = time.Minute

// mostIntrospectionTTL bounds how late the end of a token is noticed.
const mostIntrospectionTTL = time.Hour

// kindIntrospection is the kind of shared records about introspected tokens.
const kindIntrospection = "introspection"

// IntrospectionRules say which server knows opaque tokens and what its answers
// mean.
type IntrospectionRules struct {
	Name      string // as of an issuer
	URL       string
	ClientID  string   // as whom this gateway asks
	Audiences []string // none: any that the server answers for
	TTL       time.Duration
	Identity  ClaimRules
}

// IntrospectionServer answers whether a token is active (RFC 7662) that from
// sent, which is invalid if that is not known. Whatever is no answer is an error, auth.ErrUnavailable or auth.ErrOverloaded.
type IntrospectionServer interface {
	Introspect(ctx context.Context, token string, from netip.Addr) (strictjson.Object, error)
}

// Introspector judges tokens by asking who issued them. It is immutable.
type Introspector struct {
	rules  IntrospectionRules
	server IntrospectionServer
	source auth.Source
}

// NewIntrospector compiles rules. All that is wrong with them is in the error.
func NewIntrospector(r IntrospectionRules, server IntrospectionServer) (*Introspector, error) {
	if r.TTL == 0 {
		r.TTL = DefaultIntrospectionTTL
	}
	errs := []error{CheckIssuerName(r.Name), r.Identity.Check()}
	if r.TTL < 0 || r.TTL > mostIntrospectionTTL {
		errs = append(errs, auth.Invalidf("ttl %s: want at most %s, since a token that its issuer ends is good for that long", r.TTL, mostIntrospectionTTL))
	}
	if slices.Contains(r.Audiences, "") {
		errs = append(errs, auth.Invalidf("an empty audience"))
	}
	return &Introspector{r, server, sourceOf(kindIntrospection, r)}, errors.Join(errs...)
}

// introspect verifies a token that only its issuer knows.
func (v *Verifier) introspect(ctx context.Context, own auth.Fingerprint, text string, from netip.Addr, in *Introspector, now time.Time) auth.Verdict {
	if !v.fence.Trusted(now) {
		return auth.Undecided(auth.ErrStale)
	}
	return v.join(ctx, own, now, func(f *cache.Flight) { go v.runIntrospection(f, own, text, from, in) })
}

// runIntrospection looks in the shared tier, then asks the server.
func (v *Verifier) runIntrospection(f *cache.Flight, own auth.Fingerprint, text string, from netip.Addr, in *Introspector) {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	about := cache.About{Kind: kindIntrospection, Source: in.source, TTL: in.rules.TTL}
	var shared Shared
	if s := v.shared.Load(); s != nil && take(v.reads) {
		shared = *s
		landed := v.sharedAnswer(ctx, f, own, about, shared)
		<-v.reads
		if landed {
			return
		}
	}
	record, ok := v.ask(ctx, f, own, text, from, in)
	if ok && shared != nil && record.Verdict.Outcome == auth.Allow && take(v.writes) {
		if left := time.UnixMilli(record.Verdict.Identity.NotAfter).Sub(record.Checked); record.Verdict.Identity.NotAfter != 0 {
			about.TTL = min(about.TTL, left)
		}
		if about.TTL > 0 {
			_ = shared.Put(ctx, about, own, record) // the tier reports its own failures; the request has its answer
		}
		<-v.writes
	}
}

// sharedAnswer lands the flight with what another gateway was told.
func (v *Verifier) sharedAnswer(ctx context.Context, f *cache.Flight, own auth.Fingerprint, about cache.About, shared Shared) bool {
	began := time.Now()
	record, err := shared.Get(ctx, about, own)
	v.meter.Took(TierShared, time.Since(began))
	switch {
	case errors.Is(err, auth.ErrNotFound):
		v.meter.Lookup(TierShared, Miss)
		return false
	case errors.Is(err, auth.ErrCorrupt):
		v.meter.Lookup(TierShared, Refused)
		return false
	case err != nil:
		v.meter.Lookup(TierShared, Failed)
		return false
	}
	if v.hooks.AfterShared != nil {
		v.hooks.AfterShared(record)
	}
	return v.landShared(f, own, &record, v.keptFor(record.Checked, about.TTL))
}

// keptFor is the time of a check that makes the memory tier keep a verdict of
// then for ttl, if that is less than it keeps others.
func (v *Verifier) keptFor(checked time.Time, ttl time.Duration) time.Time {
	usual := v.memory.TTL()
	return checked.Add(min(ttl, usual) - usual)
}

// ask asks the server until no change overtakes the answer, maxRuns times at
// most.
func (v *Verifier) ask(ctx context.Context, f *cache.Flight, own auth.Fingerprint, text string, from netip.Addr, in *Introspector) (record cache.Record, ok bool) {
	for run := range maxRuns {
		point, ok := v.fence.Point() // before the server is asked and the cut-offs are looked at
		if !ok {
			v.memory.Abort(f, auth.Undecided(auth.ErrStale))
			return record, false
		}
		began, checked := time.Now(), v.hooks.Now()
		answer, err := in.server.Introspect(ctx, text, from)
		v.meter.Took(TierIssuer, time.Since(began))
		if err != nil {
			v.meter.Lookup(TierIssuer, failureOf(err))
			v.memory.Abort(f, auth.Undecided(err))
			return record, false
		}
		verdict := in.judge(answer, v.hooks.Now(), v.cutOffs.Load())
		if v.hooks.AfterLoad != nil {
			v.hooks.AfterLoad(run)
		}
		if verdict.Outcome == auth.CannotDecide {
			v.memory.Abort(f, verdict)
			return record, false
		}
		kept := checked
		if verdict.Outcome == auth.Allow {
			kept = v.keptFor(checked, in.rules.TTL)
		}
		if v.land(f, verdict, kept, point, own, auth.ParentsOf(&verdict.Identity)) {
			v.meter.Lookup(TierIssuer, hitOf(&verdict))
			return cache.Record{Verdict: verdict, Point: point, Checked: checked}, true
		}
		v.meter.Lookup(TierIssuer, Fenced)
	}
	v.memory.Abort(f, auth.Undecided(auth.ErrFenced))
	return record, false
}

func failureOf(err error) Result {
	if errors.Is(err, auth.ErrOverloaded) {
		return Overloaded
	}
	return Failed
}

// land ends a flight with what was read at point, unless a change overtook it.
func (v *Verifier) land(f *cache.Flight, verdict auth.Verdict, checked time.Time, point auth.Point, own auth.Fingerprint, parents auth.Parents) bool {
	return v.memory.Land(f, verdict, checked, func() bool { return v.fence.Fence(point, own, parents) == feed.Usable })
}

// judge reads an answer. Only true is active: a server that says anything else
// has not said so (RFC 7662, 2.2).
func (in *Introspector) judge(answer strictjson.Object, now time.Time, cut *CutOffs) auth.Verdict {
	id := auth.Identity{Method: auth.MethodIntrospection, Issuer: in.rules.Name}
	denied := func(r auth.Reason) auth.Verdict {
		return auth.Verdict{Outcome: auth.Deny, Reason: r, Source: in.source, Identity: auth.Identity{Method: id.Method, Issuer: id.Issuer}}
	}
	if active, _ := answer["active"].(bool); !active {
		return denied(auth.ReasonInactive)
	}
	for name, v := range answer { // some servers write what they do not know
		if v == nil {
			delete(answer, name)
		}
	}
	expires, hasExp, ok1 := answer.Date("exp")
	begins, _, ok2 := answer.Date("nbf")
	issued, _, ok3 := answer.Date("iat")
	kind, ok4 := answer.Text("token_type")
	audiences, ok5 := answer.Words("aud")
	_, bound := answer["cnf"]
	at := now.UnixMilli()
	switch {
	case !ok1 || !ok2 || !ok3 || !ok4 || !ok5:
		return denied(auth.ReasonClaims)
	case hasExp && at >= expires:
		return denied(auth.ReasonExpired)
	case begins > at+DefaultLeeway.Milliseconds(), issued > at+DefaultLeeway.Milliseconds():
		return denied(auth.ReasonNotYet)
	case kind != "" && !strings.EqualFold(kind, "bearer") && !strings.EqualFold(kind, "access_token"), otherToken(answer):
		return denied(auth.ReasonTokenType)
	case bound:
		return denied(auth.ReasonBound)
	case len(in.rules.Audiences) > 0 && !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(in.rules.Audiences, a) }):
		return denied(auth.ReasonAudience)
	}
	id.IssuedAt, id.NotAfter = uint32(issued/1000), expires
	answer, ok := in.named(answer)
	if !ok {
		return denied(auth.ReasonClaims)
	}
	subject, r := in.rules.Identity.Read(&id, answer)
	if r != auth.ReasonNone {
		return denied(r)
	}
	return judgeCut(auth.Verdict{Outcome: auth.Allow, Source: in.source, Identity: id}, cut, subject)
}

// named gives a client that speaks for itself a subject, where the server says
// none (RFC 7662, 2.2: sub is optional).
func (in *Introspector) named(answer strictjson.Object) (strictjson.Object, bool) {
	if in.rules.Identity.SubjectClaim != "" {
		return answer, true
	}
	sub, ok := answer.Text("sub")
	if !ok || strings.HasPrefix(sub, clientSubject) {
		return nil, false
	}
	client, ok := answer.Text("client_id")
	if sub != "" || !ok || client == "" {
		return answer, ok
	}
	named := strictjson.Object{}
	for k, v := range answer {
		named[k] = v
	}
	named["sub"] = clientSubject + client
	return named, true
}
