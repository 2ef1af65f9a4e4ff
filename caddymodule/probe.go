package caddymodule

import (
	"errors"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// httpServer stands for Caddy's HTTP server, to get the logger it gets.
type httpServer struct{}

// CaddyModule returns the Caddy module information.
func (httpServer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http", New: func() caddy.Module { return new(httpServer) }}
}

// probed is what is known of one log that the HTTP server writes to.
type probed struct {
	name string // of the log, as far as it can be told
	safe bool
}

// probeLogs asks every log core that the HTTP server writes to whether the
// outermost encoder is ours. Nothing is written.
func probeLogs(ctx caddy.Context) []probed {
	names := namesOf(ctx)
	var logs []probed
	for _, core := range leaves(ctx.Logger(httpServer{}).Core()) {
		if core == zapcore.NewNopCore() { // discarded
			continue
		}
		logs = append(logs, probed{name: names.of(core), safe: coreIsSafe(core)})
	}
	return logs
}

// leaves takes apart what zap joined: Tee makes a slice of cores.
func leaves(core zapcore.Core) []zapcore.Core {
	v := reflect.ValueOf(core)
	if v.Kind() != reflect.Slice {
		return []zapcore.Core{core}
	}
	var out []zapcore.Core
	for i := range v.Len() {
		if inner, ok := v.Index(i).Interface().(zapcore.Core); ok {
			out = append(out, leaves(inner)...)
		}
	}
	return out
}

// coreIsSafe gives the core a field that looks at who encodes it. A core that
// does not encode it can't be probed and is not safe; one that is a tee of
// several must have each of them safe.
func coreIsSafe(core zapcore.Core) bool {
	if parts := inner(core); len(parts) > 1 {
		return !slices.ContainsFunc(parts, func(c zapcore.Core) bool { return c != zapcore.NewNopCore() && !coreIsSafe(c) })
	}
	asked, safe := 0, true
	core.With([]zapcore.Field{zap.Inline(zapcore.ObjectMarshalerFunc(func(enc zapcore.ObjectEncoder) error {
		asked++
		if _, ours := enc.(*RedactEncoder); !ours {
			safe = false
		}
		return nil
	}))})
	return asked > 0 && safe
}

// inner returns the cores that one of Caddy's filtering cores stands before.
func inner(core zapcore.Core) []zapcore.Core {
	if f := field(core, "Core"); f.IsValid() && f.CanInterface() {
		if c, ok := f.Interface().(zapcore.Core); ok {
			return leaves(c)
		}
	}
	return leaves(core)
}

// logNames are the names of a configuration's logs by the addresses of the
// log and of its core, one of which every core of a logger shows.
type logNames map[uintptr]string

// namesOf looks into fields that Caddy does not export. They are only
// compared, and only to name a log: what is safe does not depend on them.
func namesOf(ctx caddy.Context) (names logNames) {
	names = logNames{}
	defer func() { _ = recover() }() // another Caddy: names are lost, nothing else
	logs := reflect.ValueOf(ctx).FieldByName("cfg").Elem().FieldByName("Logging").Elem().FieldByName("Logs")
	for it := logs.MapRange(); it.Next(); {
		cl := it.Value()
		names[cl.Pointer()] = it.Key().String()
		if core := cl.Elem().FieldByName("core").Elem(); core.Kind() == reflect.Pointer {
			names[core.Pointer()] = it.Key().String()
		}
	}
	return names
}

func (n logNames) of(core zapcore.Core) string {
	if cl := field(core, "cl"); cl.IsValid() && cl.Kind() == reflect.Pointer && n[cl.Pointer()] != "" {
		return n[cl.Pointer()]
	}
	if v := reflect.ValueOf(core); v.Kind() == reflect.Pointer && n[v.Pointer()] != "" {
		return n[v.Pointer()]
	}
	return caddy.DefaultLoggerName
}

// field returns a field of what core points to, or the zero Value.
func field(core zapcore.Core, name string) reflect.Value {
	v := reflect.ValueOf(core)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.Elem().FieldByName(name)
}

// checkLogs refuses a configuration whose logs would print credentials.
func (a *App) checkLogs(ctx caddy.Context) error {
	var unsafe []string
	for _, l := range probeLogs(ctx) {
		if !l.safe && !slices.Contains(unsafe, l.name) {
			unsafe = append(unsafe, l.name)
		}
	}
	slices.Sort(unsafe)
	if len(unsafe) == 0 {
		return nil
	}
	var refused []string
	for _, name := range unsafe {
		if a.UnsafeLogs == nil || len(a.UnsafeLogs.Loggers) > 0 && !slices.Contains(a.UnsafeLogs.Loggers, name) {
			refused = append(refused, name)
		}
	}
	if len(refused) == 0 {
		a.log.Warn("these logs print credentials, as unsafe_logs allows: every key a client sends ends up there", zap.Strings("logs", unsafe))
		return nil
	}
	return auth.WithHint(errors.New(unsafeText(refused)), "unsafe_logs in the global auth block loads it all the same")
}

// The text of the refusal begins with these, around the names of the logs.
const (
	unsafeStart = "these logs would print credentials: "
	unsafeRest  = ". Caddy prints X-API-Key and queries in clear. "
)

func unsafeText(logs []string) string {
	var b strings.Builder
	b.WriteString(unsafeStart + strings.Join(logs, ", ") + unsafeRest)
	b.WriteString("Add to the global options:\n\tlog {\n\t\tformat auth_redact\n\t}\n")
	b.WriteString("and to every log directive of a site:\n\tlog {\n\t\tformat auth_redact\n\t}\n")
	b.WriteString("auth_redact goes outermost, another format inside with wrap. This covers every site of the process, those without auth too")
	return b.String()
}
