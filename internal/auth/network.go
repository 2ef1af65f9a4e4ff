package auth

import (
	"net/netip"
	"strings"
)

// InNetworks reports whether an address is in one of several networks, which
// are CIDR prefixes separated by spaces; none: any address is. It fails closed:
// no address, or a prefix that can't be read, is nowhere.
func InNetworks(networks string, addr netip.Addr) bool {
	if networks == "" {
		return true
	}
	if !addr.IsValid() {
		return false
	}
	addr = addr.Unmap().WithZone("")
	for word := range strings.FieldsSeq(networks) {
		if p, err := netip.ParsePrefix(word); err == nil && p.Contains(addr) {
			return true
		}
	}
	return false
}

// ClientPrefix is what one client owns around its address: of IPv6 a /64.
func ClientPrefix(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
