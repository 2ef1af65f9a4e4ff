package caddymodule

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func TestMetrics_LintAndTwoRegistries(t *testing.T) {
	newHandler(t) // gauges tell of a gateway that runs
	for range 2 { // as over a reload
		reg := prometheus.NewPedanticRegistry()
		if err := metrics.register(reg); err != nil {
			t.Fatal(err)
		}
		if err := metrics.register(reg); err != nil {
			t.Errorf("registering twice: %v", err)
		}
		if n, err := testutil.GatherAndCount(reg, "caddy_auth_trusted", "caddy_auth_cache_entries", "caddy_auth_store_up"); err != nil || n != 4 {
			t.Errorf("%d gauges, %v", n, err)
		}
		problems, err := testutil.GatherAndLint(reg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestMeter_SpanOnTheSlowPath: a traced request that waits for a lookup gets a
// span, which names the credential's id and never the credential.
func TestMeter_SpanOnTheSlowPath(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	ctx, parent := provider.Tracer("test").Start(t.Context(), "request")
	done := meter{}.Wait(ctx)
	done(&auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{CredentialID: "key_1", Subject: "acme"}})
	parent.End()
	ended := spans.Ended()
	if len(ended) != 2 || ended[0].Name() != "auth.lookup" || ended[0].Parent().SpanID() != parent.SpanContext().SpanID() {
		t.Fatalf("%d spans", len(ended))
	}
	got := map[string]string{}
	for _, a := range ended[0].Attributes() {
		got[string(a.Key)] = a.Value.AsString()
	}
	if got["auth.outcome"] != "allowed" || got["auth.credential_id"] != "key_1" || len(got) != 3 {
		t.Errorf("%v", got)
	}
	meter{}.Wait(t.Context())(&auth.Verdict{}) // not traced: nothing happens
}
