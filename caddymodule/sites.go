package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/routes"
)

// httpConfig is the configuration of Caddy's app http as it was loaded, or nil.
// Caddy keeps it, in a field that it does not export, until that app is
// provisioned, which is when an app auth is provisioned at the latest.
func httpConfig(ctx caddy.Context) (raw json.RawMessage) {
	defer func() {
		if recover() != nil { // another Caddy
			raw = nil
		}
	}()
	apps := reflect.ValueOf(ctx).FieldByName("cfg").Elem().FieldByName("AppsRaw")
	return apps.MapIndex(reflect.ValueOf("http")).Bytes()
}

// checkSites looks at the whole of the sites, those without auth too: it warns of
// what can be reached past every auth, and refuses what would export a credential.
func (a *App) checkSites(ctx caddy.Context) error {
	a.sites = httpConfig(ctx)
	if a.sites == nil {
		if kept := keptSites.Load(); kept != nil && kept.config == configOf(ctx) {
			a.sites = kept.http
		}
	}
	if a.sites == nil {
		return nil
	}
	if err := a.checkExports(); err != nil {
		return err
	}
	all, err := routes.Read(a.sites)
	if err != nil {
		a.log.Warn("the sites could not be looked through for services without auth", zap.Error(err))
		return nil
	}
	lines := linesOfProxies(adaptedFrom.Load())
	for i := range all {
		if gap := all[i].Gap(); gap != "" && all[i].Proxies() {
			fields := []zap.Field{zap.String("route", describeRoute(&all[i])), zap.String("reason", gap), zap.String("config", all[i].At)}
			if at := lines.of(&all[i]); at != "" {
				fields = append(fields, zap.String("at", at))
			}
			a.log.Warn("no auth guards this service", fields...)
		}
	}
	return nil
}

// sitesOf are the sites of one configuration.
type sitesOf struct {
	config uintptr
	http   json.RawMessage
}

// keptSites holds the sites that the encoder auth_redact saw last. Caddy sets up logs
// before apps. It may provision the app http before the app auth, and forgets the
// configuration of http then.
var keptSites atomic.Pointer[sitesOf]

// keepSites keeps a configuration's sites for its app auth.
func keepSites(ctx caddy.Context) {
	if raw := httpConfig(ctx); raw != nil {
		keptSites.Store(&sitesOf{configOf(ctx), raw})
	}
}

// configOf is the address of a context's configuration; 0: this is another Caddy.
func configOf(ctx caddy.Context) uintptr {
	field := reflect.ValueOf(ctx).FieldByName("cfg")
	if !field.IsValid() || field.Kind() != reflect.Pointer {
		return 0
	}
	return field.Pointer()
}

// describeRoute names a route as an operator would.
func describeRoute(r *routes.Answer) string {
	where := strings.Join(r.Hosts, " ")
	if where == "" {
		where = strings.Join(r.Listen, " ")
	}
	if r.Match != "" {
		where += ", " + r.Match
	}
	return where + ": " + strings.Join(append([]string{r.Handler}, r.Upstreams...), " ")
}

// checkExports refuses what would send credentials to who collects spans and
// metrics. unsafe_logs loads it all the same.
func (a *App) checkExports() error {
	var app struct {
		Metrics *struct {
			ObserveCatchallHosts bool `json:"observe_catchall_hosts"`
		} `json:"metrics"`
	}
	if err := json.Unmarshal(a.sites, &app); err != nil {
		return fmt.Errorf("reading the sites: %w", err)
	}
	var errs []error
	if app.Metrics != nil && app.Metrics.ObserveCatchallHosts {
		errs = append(errs, errors.New("metrics { observe_catchall_hosts } makes a label of every host name that a client makes up, a key too, for ever: remove it"))
	}
	for _, h := range handlersNamed(a.sites, "tracing") {
		a.traced = true
		attributes, _ := h["span_attributes"].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(attributes)) {
			value, _ := attributes[name].(string)
			if from := fromClient(value); from != "" {
				errs = append(errs, fmt.Errorf("tracing: the span attribute %s would export %s, which a client chooses and which may hold a key: remove it; "+
					"{http.auth.user.*} say who is calling", name, from))
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	if a.UnsafeLogs != nil {
		a.log.Warn("this may export credentials, as unsafe_logs allows", zap.Error(errors.Join(errs...)))
		return nil
	}
	return errors.Join(errs...)
}

// fromClient returns the first placeholder in a value that stands for something
// which a client writes as it likes, or "".
func fromClient(value string) string {
	for _, m := range placeholderNames.FindAllStringSubmatch(value, -1) {
		name := strings.TrimPrefix(m[1], "http.")
		if name == m[1] {
			continue
		}
		if !slices.ContainsFunc(harmlessPlaceholders, func(p string) bool { return name == p || strings.HasSuffix(p, ".") && strings.HasPrefix(name, p) }) {
			return m[0]
		}
	}
	return ""
}

var placeholderNames = regexp.MustCompile(`\{([^{}]+)\}`)

// harmlessPlaceholders are those of a request, without "http.", that hold nothing a
// client could put a credential into.
var harmlessPlaceholders = []string{
	"auth.user.", "request.scheme", "request.proto", "request.port", "request.uuid", "request.duration", "request.duration_ms",
	"request.remote", "request.remote.", "request.local", "request.local.", "request.tls.version", "request.tls.cipher_suite", "request.tls.resumed",
	"request.tls.proto", "vars.client_ip", "vars.trace_id", "vars.span_id", "error.status_code", "error.status_text", "error.id", "error.trace",
	"reverse_proxy.upstream.", "reverse_proxy.retries", "reverse_proxy.status_code",
}

// handlersNamed returns the handlers of a kind, wherever they stand in a
// configuration.
func handlersNamed(config []byte, name string) (out []map[string]any) {
	var tree any
	if json.Unmarshal(config, &tree) != nil {
		return nil
	}
	var walk func(any)
	walk = func(n any) {
		switch n := n.(type) {
		case []any:
			for _, x := range n {
				walk(x)
			}
		case map[string]any:
			if n["handler"] == name {
				out = append(out, n)
			}
			for _, x := range n {
				walk(x)
			}
		}
	}
	walk(tree)
	return out
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}
