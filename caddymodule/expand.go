package caddymodule

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// resolvedElsewhere are fields whose placeholders are replaced where they are used:
// secrets, so that no configuration holds one, what may hold a password, and files
// that are watched.
var resolvedElsewhere = []string{"MasterKey", "OlderMasterKeys", "StoreRaw", "ClientSecret", "ClientSecretFile", "Value", "File", "Password", "SentinelPassword", "URL", "Addresses"}

// expandAll replaces the placeholders in every text of a configuration, a pointer to
// a struct, in place. {env.X}, {file.X} and {system.*} are known when it is loaded;
// those of a request are not, and are an error that names the option.
func expandAll(config any) error {
	return errors.Join(expandValue(reflect.ValueOf(config).Elem(), "")...)
}

func expandValue(v reflect.Value, name string) (errs []error) {
	switch v.Kind() {
	case reflect.String:
		out, err := expandText(v.String())
		if err != nil {
			return []error{fmt.Errorf("%s: %w", name, err)}
		}
		if v.CanSet() && out != v.String() {
			v.SetString(out)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return expandValue(v.Elem(), name)
		}
	case reflect.Slice:
		for i := range v.Len() {
			errs = append(errs, expandValue(v.Index(i), name)...)
		}
	case reflect.Map:
		return expandMap(v, name)
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || slices.Contains(resolvedElsewhere, f.Name) {
				continue
			}
			option, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if option == "" || name != "" && f.Anonymous {
				option = name
			} else if name != "" {
				option = name + " " + option
			}
			errs = append(errs, expandValue(v.Field(i), option)...)
		}
	}
	return errs
}

// expandMap replaces the placeholders in a map's values. Its keys hold none: they name
// issuers, logins, parameters and the like.
func expandMap(v reflect.Value, name string) (errs []error) {
	for _, key := range v.MapKeys() {
		item := reflect.New(v.Type().Elem()).Elem()
		item.Set(v.MapIndex(key))
		if item.Kind() == reflect.Slice { // a value of a map can't be changed in place
			item.Set(reflect.AppendSlice(reflect.MakeSlice(item.Type(), 0, item.Len()), item))
		}
		errs = append(errs, expandValue(item, strings.TrimSpace(name+" "+key.String()))...)
		v.SetMapIndex(key, item)
	}
	return errs
}

// expandable is what is a placeholder in a configuration's texts. Braces that hold
// anything else, such as JSON in a parameter of a login, stay as they are.
var expandable = regexp.MustCompile(`\{(?:(?:env|file|system)\.[^{}]+|[A-Za-z_][A-Za-z0-9_.-]*)\}`)

// expandText replaces the placeholders in one text.
func expandText(text string) (string, error) {
	var failed error
	out := expandable.ReplaceAllStringFunc(text, func(name string) string {
		value, err := caddy.NewReplacer().ReplaceOrErr(name, true, true)
		if err != nil && failed == nil {
			failed = fmt.Errorf("%w: here a placeholder must be known when the configuration is loaded, such as {env.NAME} or {file./path}", err)
		}
		return value
	})
	if failed != nil {
		return "", failed
	}
	return out, nil
}
