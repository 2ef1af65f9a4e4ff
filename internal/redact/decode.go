package redact

import "strings"

// decode appends to dst the fully percent-decoded form of s: decoding goes on
// until nothing is left to decode, in one pass and linear time, because every
// decoded byte is looked at again together with what stands before it.
// Malformed escapes stay as they are. %uXXXX below 0x80 is decoded too.
func decode(dst []byte, s string) []byte {
	first := strings.IndexByte(s, '%')
	if first < 0 {
		return append(dst, s...)
	}
	base := len(dst)
	dst, s = append(dst, s[:first]...), s[first:]
	for i := range len(s) {
		dst = append(dst, s[i])
		for {
			n := len(dst)
			if n-base >= 3 && dst[n-3] == '%' && isHex(dst[n-2]) && isHex(dst[n-1]) {
				dst = append(dst[:n-3], unhex(dst[n-2])<<4|unhex(dst[n-1]))
				continue
			}
			if n-base >= 6 && dst[n-6] == '%' && dst[n-5]|0x20 == 'u' && dst[n-4] == '0' && dst[n-3] == '0' && isHex(dst[n-2]) && isHex(dst[n-1]) {
				dst = append(dst[:n-6], unhex(dst[n-2])<<4|unhex(dst[n-1]))
				continue
			}
			break
		}
	}
	return dst
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}
