package caddymodule

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// Results of requests that were not refused; the others are the refusals'
// codes.
const (
	resultAllowed   = "allowed"
	resultPublic    = "public"
	resultAnonymous = "anonymous"
)

// metrics are the process's: they go on over reloads, each of which registers
// them anew. No label is ever chosen by a client.
var metrics = newCollectors()

// current is the runtime that the gauges describe.
var current atomic.Pointer[runtime]

type collectors struct {
	requests *prometheus.CounterVec
	allowed  map[auth.Method]prometheus.Counter // resolved once
	public,
	anonymous prometheus.Counter
	lookups    [verifier.TierCount][verifier.ResultCount]prometheus.Counter
	lookupsVec *prometheus.CounterVec
	seconds    [verifier.TierCount]prometheus.Observer
	secondsVec *prometheus.HistogramVec
	refused    prometheus.Counter
	leaks      prometheus.Counter
	suppressed prometheus.Counter
	slowed     prometheus.Counter
	issued     *prometheus.CounterVec

	logins             *prometheus.CounterVec
	sessionRefreshes   *prometheus.CounterVec
	sessionRevocations *prometheus.CounterVec
	sessionsEnded      prometheus.Counter

	endpointRefusals *prometheus.CounterVec
	lag              prometheus.Gauge
	bells            *prometheus.CounterVec
	ended            *prometheus.CounterVec
	issuerUp         *prometheus.GaugeVec

	outboundRefreshes *prometheus.CounterVec
	outboundFailures  *prometheus.CounterVec
	outboundRefused   *prometheus.CounterVec
	state             stateCollector
}

func newCollectors() *collectors {
	const ns = "caddy_auth"
	m := &collectors{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "requests_total", Help: "Requests by the method of their credential and what became of them.",
		}, []string{"method", "result"}),
		lookupsVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "lookups_total", Help: "Lookups of credentials by tier and result.",
		}, []string{"tier", "result"}),
		secondsVec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Name: "lookup_seconds", Help: "How long asking Redis and the store took.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"tier"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "sealed_records_refused_total", Help: "Records in Redis that this store did not seal, or not under that name.",
		}),
		leaks: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "leaked_keys_total", Help: "Live keys seen in URLs, at most one a minute and key.",
		}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "decisions_suppressed_total", Help: "Refusals that the decision log left out by its rate limit.",
		}),
		slowed: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "refusals_slowed_total", Help: "Refusals that waited because there were too many of them.",
		}),
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "tokens_issued_total", Help: "Tokens that the token endpoint gave out, by grant.",
		}, []string{"grant"}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "logins_total", Help: "Sign-ins that began, succeeded or failed, by login and why, and sign-outs.",
		}, []string{"login", "result"}),
		sessionRefreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "session_refreshes_total", Help: "Refreshes of the tokens of people's sessions, by login and result.",
		}, []string{"login", "result"}),
		sessionRevocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "session_token_revocations_total", Help: "Tokens of sessions that ended that were revoked at the provider, or could not be.",
		}, []string{"login", "result"}),
		sessionsEnded: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "sessions_ended_total", Help: "Sessions that this gateway ended: by sign-out, by the provider, for want of tokens.",
		}),
		endpointRefusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "endpoint_refusals_total", Help: "Refusals of the token, revocation and introspection endpoints by their error code.",
		}, []string{"endpoint", "error"}),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: ns, Name: "journal_lag_seconds", Help: "How old the change that was applied last was then, by the clocks of its writer and this gateway.",
		}),
		bells: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "doorbells_total", Help: "Looks at the journal that the doorbell caused, by whether they found something.",
		}, []string{"result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "streams_ended_total", Help: "Requests under way that were ended because their credential was, by reason.",
		}, []string{"reason"}),
		issuerUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Name: "issuer_up", Help: "Whether an issuer answered when it was asked last, by its name in the configuration.",
		}, []string{"issuer"}),
		outboundRefreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "outbound_refreshes_total", Help: "Tokens got for upstreams, from the token endpoint or from the gateway that had asked it.",
		}, []string{"outbound", "from"}),
		outboundFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "outbound_failures_total", Help: "Attempts to get a token for upstreams that failed, by cause.",
		}, []string{"outbound", "cause"}),
		outboundRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "outbound_refused_total", Help: "Tokens that an upstream refused with 401, by whether another was fetched.",
		}, []string{"outbound", "result"}),
		allowed: map[auth.Method]prometheus.Counter{},
	}
	for _, method := range auth.Methods() {
		m.allowed[method] = m.requests.WithLabelValues(string(method), resultAllowed)
	}
	m.public = m.requests.WithLabelValues("none", resultPublic)
	m.anonymous = m.requests.WithLabelValues("none", resultAnonymous)
	for t := range verifier.TierCount {
		for r := range verifier.ResultCount {
			m.lookups[t][r] = m.lookupsVec.WithLabelValues(t.String(), r.String())
		}
		if t != verifier.TierMemory {
			m.seconds[t] = m.secondsVec.WithLabelValues(t.String())
		}
	}
	return m
}

// register makes the collectors known to a configuration's registry. Another
// app of the same configuration may have done so.
func (m *collectors) register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.requests, m.lookupsVec, m.secondsVec, m.refused, m.leaks, m.suppressed, m.slowed, m.issued, m.logins, m.sessionRefreshes, m.sessionRevocations, m.sessionsEnded, m.endpointRefusals, m.lag, m.bells, m.ended, m.issuerUp, m.outboundRefreshes, m.outboundFailures, m.outboundRefused, m.state} {
		var dup prometheus.AlreadyRegisteredError
		if err := reg.Register(c); err != nil && !errors.As(err, &dup) {
			return err
		}
	}
	return nil
}

// count counts a refusal. method is empty where no credential was verified.
func (m *collectors) count(method auth.Method, code auth.Code) {
	if method == "" {
		method = "none"
	}
	m.requests.WithLabelValues(string(method), string(code)).Inc()
}

// rung counts a look that the doorbell caused.
func (m *collectors) rung(news bool) {
	result := "nothing_new"
	if news {
		result = "news"
	}
	m.bells.WithLabelValues(result).Inc()
}

// stateCollector reads what the runtime knows when it is asked.
type stateCollector struct{}

func stateDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_auth_"+name, help, labels, nil)
}

var (
	descLookAge = stateDesc("journal_look_age_seconds", "How long ago the last good look at the journal began.")
	descBeatAge = stateDesc("heartbeat_age_seconds", "How long ago the last confirmed heartbeat began.")
	descStreams = stateDesc("requests_under_way", "Requests under way with a credential.")
	descSeq     = stateDesc("journal_sequence", "The sequence of the last change applied.")
	descStoreUp = stateDesc("store_up", "Whether the last look at the store was good.")
	descRedisUp = stateDesc("redis_up", "Whether Redis answered when it was last asked. Absent without Redis.")
	descTrusted = stateDesc("trusted", "Whether cached verdicts are trusted: 0 means 503 for every key.")
	descCached  = stateDesc("cache_entries", "Entries in the memory tier.", "kind")

	descTokenAge   = stateDesc("outbound_token_age_seconds", "How long ago the token in use was asked for. Absent without one that is good.", "outbound")
	descTokenLeft  = stateDesc("outbound_token_expires_in_seconds", "How long the token in use is good. Absent without one.", "outbound")
	descSecretGood = stateDesc("outbound_secret_file_ok", "Whether a watched file held a usable secret when it was last read: 0 means an older one is used.", "outbound")
)

// Describe implements prometheus.Collector.
func (stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLookAge, descBeatAge, descStreams, descSeq, descStoreUp, descRedisUp, descTrusted, descCached, descTokenAge, descTokenLeft, descSecretGood} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (stateCollector) Collect(ch chan<- prometheus.Metric) {
	rt := current.Load()
	if rt == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	now := time.Now()
	if age := rt.follower.Age(now); age < never {
		gauge(descLookAge, age.Seconds())
	}
	if age := rt.follower.BeatAge(now); age < never {
		gauge(descBeatAge, age.Seconds())
	}
	gauge(descStreams, float64(rt.streams.Len()))
	cursor, _ := rt.follower.Position()
	gauge(descSeq, float64(cursor))
	gauge(descStoreUp, bit(rt.storeUp()))
	gauge(descTrusted, bit(rt.follower.Trusted(now)))
	if redis := rt.now.Load().redis; redis != nil {
		gauge(descRedisUp, bit(redis.Up()))
	}
	good, bad := rt.memory.Len()
	gauge(descCached, float64(good), "identity")
	gauge(descCached, float64(bad), "denial")
	for name, s := range ownInUse.byName() {
		if s.tokens != nil {
			if st, ok := s.tokens.Status(); ok {
				gauge(descTokenAge, now.Sub(st.Issued).Seconds(), name)
				gauge(descTokenLeft, st.Expires.Sub(now).Seconds(), name)
			}
		}
		if s.file != nil {
			gauge(descSecretGood, bit(s.file.Good()), name)
		}
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// meter implements verifier.Meter.
type meter struct{}

// Lookup implements verifier.Meter.
func (meter) Lookup(t verifier.Tier, r verifier.Result) {
	metrics.lookups[t][r].Inc()
	if t == verifier.TierShared && r == verifier.Refused {
		metrics.refused.Inc()
	}
}

// Took implements verifier.Meter.
func (meter) Took(t verifier.Tier, d time.Duration) { metrics.seconds[t].Observe(d.Seconds()) }

// Wait implements verifier.Meter: a span where the request is traced.
func (meter) Wait(ctx context.Context) func(*auth.Verdict) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return func(*auth.Verdict) {}
	}
	_, span := parent.TracerProvider().Tracer("caddy-auth").Start(ctx, "auth.lookup")
	return func(v *auth.Verdict) {
		outcome := [...]string{"undecided", "denied", "allowed"}[v.Outcome]
		span.SetAttributes(attribute.String("auth.outcome", outcome), attribute.String("auth.reason", v.Reason.String()),
			attribute.String("auth.credential_id", v.Identity.CredentialID))
		span.End()
	}
}
