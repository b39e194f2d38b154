"""Messages that two servers are known to read in two ways, and the answer that each must get.

The answer is a status, or the requests (method, target, content) that any server would read. Every input is run whole,
byte by byte and cut at random. Where they come from, by the name in front of a case:

    cl_te, te_cl, te_te   James Kettle, "HTTP Desync Attacks" (2019), and PortSwigger's collection of obfuscations;
                          CVE-2019-16276, CVE-2022-32213 to 32215, CVE-2024-1135
    linhart               Chaim Linhart and others, "HTTP Request Smuggling" (2005)
    klein                 Amit Klein, "HTTP Request Smuggling in 2020"
    garden                Ben Kallus and others, "The HTTP Garden" (2024)
    chunk                 Jeppe Bonde Weikop, "Funky chunks" (2025)
    rfc                   RFC 9112 section 3.2: what a server MUST answer with 400
"""

import pytest

from tests.support.messages import read_in_all_cuts, requests, responses

HOST = b"Host: a\r\n"
SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
ADMIN = (b"GET", b"/admin", b"")
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(CHUNKED, body)


def coding(value: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + value + b"\r\n", b"0\r\n\r\n")


def length(value: bytes) -> bytes:
    return post(b"Content-Length: " + value + b"\r\n", b"hello")


REQUESTS = {
    # Two lengths
    "cl_te": (post(b"Content-Length: 6\r\n" + CHUNKED, b"0\r\n\r\nG"), 400),
    "cl_te_differently_cased": (post(b"content-length: 6\r\nTRANSFER-ENCODING: chunked\r\n", b"0\r\n\r\nG"), 400),
    "te_cl": (post(CHUNKED + b"Content-Length: 4\r\n", b"5c\r\nGPOST / HTTP/1.1\r\n0\r\n\r\n"), 400),
    "cl_te_that_agree": (post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"), 400),
    "cl_0_te": (post(b"Content-Length: 0\r\n" + CHUNKED, b"0\r\n\r\n"), 400),
    "cl_te_identity": (post(b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n", b"hello"), 400),
    "cl_te_unknown": (post(b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", b"hello"), 400),
    "cl_te_empty": (post(b"Content-Length: 5\r\nTransfer-Encoding:\r\n", b"hello"), 400),
    "linhart_two_lengths": (post(b"Content-Length: 0\r\nContent-Length: 44\r\n", SMUGGLED), 400),
    "linhart_two_lengths_far_apart": (post(b"Content-Length: 5\r\nX: y\r\ncontent-length: 6\r\n", b"hello!"), 400),
    "two_equal_lengths": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    "length_list": (length(b"5, 5"), 400),
    "length_list_differing": (length(b"5, 6"), 400),
    "length_list_ending_in_comma": (length(b"5,"), 400),
    # One length, misread
    "garden_length_plus": (length(b"+5"), 400),
    "garden_length_minus": (length(b"-5"), 400),
    "garden_length_minus_zero": (length(b"-0"), 400),
    "garden_length_hex": (length(b"0x5"), 400),
    "garden_length_octal": (length(b"0o5"), 400),
    "garden_length_leading_zero": (length(b"05"), 400),
    "garden_length_underscore": (length(b"1_0"), 400),
    "garden_length_exponent": (length(b"5e0"), 400),
    "garden_length_decimals": (length(b"5.0"), 400),
    "garden_length_two_words": (length(b"5 5"), 400),
    "garden_length_quoted": (length(b'"5"'), 400),
    "garden_length_parameter": (length(b"5;x"), 400),
    "garden_length_empty": (length(b""), 400),
    "garden_length_letters": (length(b"five"), 400),
    "garden_length_tab": (length(b"\t5"), 400),
    "garden_length_vertical_tab": (length(b"\x0b5"), 400),
    "garden_length_nul": (length(b"5\0"), 400),
    "garden_length_nul_before_digits": (length(b"\x005"), 400),
    "garden_length_unicode_digit": (length("\u0665".encode()), 400),
    "garden_length_superscript": (length(b"5\xb2"), 400),
    "garden_length_2_to_63": (length(b"9223372036854775808"), 400),
    "garden_length_wraps_32_bits": (length(b"4294967301"), []),  # a long body, not one of 5 bytes
    "garden_length_wraps_64_bits": (length(b"18446744073709551621"), 400),
    "garden_length_of_100_digits": (length(b"9" * 100), 400),
    "klein_length_space_before_colon": (post(b"Content-Length : 5\r\n", b"hello"), 400),
    "klein_length_tab_before_colon": (post(b"Content-Length\t: 5\r\n", b"hello"), 400),
    "klein_length_name_cut": (post(b"Content Length: 5\r\n", b"hello"), 400),
    "klein_length_name_with_cr": (post(b"Content-Length\r: 5\r\n", b"hello"), 400),
    "klein_length_name_with_nul": (post(b"Content-Length\0: 5\r\n", b"hello"), 400),
    "klein_length_name_with_high_byte": (post(b"Content-Length\xa0: 5\r\n", b"hello"), 400),
    "length_in_bare_lf_line": (post(b"X: y\nContent-Length: 5\r\n", b"hello"), 400),
    "cl_0_ignored_by_server": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED),
        [(b"GET", b"/", SMUGGLED)],
    ),
    "kettle_body_of_get": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
        [(b"GET", b"/", b"hello"), ADMIN],
    ),
    # Transfer-Encoding, hidden from one of two servers
    "te_te_xchunked": (coding(b"xchunked"), 400),
    "te_te_chunked_then_x": (coding(b"chunked, x"), 400),
    "te_te_chunked_then_identity": (coding(b"chunked, identity"), 400),
    "te_te_identity": (coding(b"identity"), 400),
    "te_te_gzip": (coding(b"gzip"), 400),
    "te_te_identity_then_chunked": (coding(b"identity, chunked"), 501),
    "te_te_gzip_then_chunked": (coding(b"gzip, chunked"), 501),
    "te_te_chunked_twice": (coding(b"chunked, chunked"), 400),
    "te_te_two_lines": (post(CHUNKED + b"Transfer-Encoding: x\r\n", b"0\r\n\r\n"), 400),
    "te_te_two_lines_chunked_last": (post(b"Transfer-Encoding: x\r\n" + CHUNKED, b"0\r\n\r\n"), 501),
    "te_te_two_equal_lines": (post(CHUNKED + CHUNKED, b"0\r\n\r\n"), 400),
    "te_te_invalid_line_then_chunked": (post(b"Transfer-Encoding: ,\r\n" + CHUNKED, b"0\r\n\r\n"), 400),
    "te_te_empty": (coding(b""), 400),
    "te_te_comma": (coding(b","), 400),
    "te_te_chunked_comma": (coding(b"chunked,"), 400),
    "te_te_comma_chunked": (coding(b", chunked"), 400),
    "te_te_semicolon": (coding(b"chunked;"), 400),
    "te_te_parameter": (coding(b"chunked;a=b"), 400),
    "te_te_quality": (coding(b"chunked; q=0"), 400),
    "te_te_quoted": (coding(b'"chunked"'), 400),
    "te_te_comma_in_quotes": (coding(b'x="a,chunked"'), 400),
    "te_te_space_inside": (coding(b"chun ked"), 400),
    "te_te_without_comma": (coding(b"x chunked"), 400),
    "te_te_tab_before": (coding(b"\tchunked"), 400),
    "te_te_tab_after": (coding(b"chunked\t"), 400),
    "te_te_vertical_tab": (coding(b"\x0bchunked"), 400),
    "te_te_form_feed": (coding(b"chunked\x0c"), 400),
    "te_te_nul": (coding(b"chunked\0"), 400),
    "te_te_delete": (coding(b"chunked\x7f"), 400),
    "te_te_bare_cr_before": (coding(b"\rchunked"), 400),
    "te_te_bare_cr_after": (coding(b"chunked\r"), 400),
    "te_te_no_break_space": (coding(b"\xa0chunked"), 400),
    "te_te_high_letter": (coding(b"chun\xc4\xb1ked"), 400),
    "te_te_kelvin_sign": (coding("chun\u212aed".encode()), 400),
    "te_te_space_before_colon": (post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_space_before_name": (post(b"X: y\r\n Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_folded_value": (post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_folded_by_tab": (post(b"Transfer-Encoding: x,\r\n\tchunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_bare_lf_in_other_value": (post(b"X: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_bare_cr_in_other_value": (post(b"X: y\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_nul_in_name": (post(b"Transfer-Encoding\0: chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_quoted_name": (post(b'"Transfer-Encoding": chunked\r\n', b"0\r\n\r\n"), 400),
    "te_te_no_colon": (post(b"Transfer-Encoding chunked\r\n", b"0\r\n\r\n"), 400),
    "te_te_underscore_is_another_header": (
        post(b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", b"hello") + SMUGGLED,
        [(b"POST", b"/", b"hello"), ADMIN],
    ),
    "te_in_http_1_0": (b"POST / HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "te_in_capitals": (coding(b"CHUNKED") + SMUGGLED, [(b"POST", b"/", b""), ADMIN]),
    "te_without_space": (
        post(b"Transfer-Encoding:chunked\r\n", b"0\r\n\r\n") + SMUGGLED,
        [(b"POST", b"/", b""), ADMIN],
    ),
    # Chunks
    "chunk_size_2_to_63": (chunked(b"8000000000000000\r\n"), 400),
    "chunk_size_wraps_64_bits": (chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_wraps_32_bits": (chunked(b"100000005\r\nhello\r\n0\r\n\r\n"), []),
    "chunk_size_of_many_zeros": (chunked(b"00000000000000005\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_empty": (chunked(b"\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_0x": (chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_plus": (chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_minus": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_underscore": (chunked(b"1_0\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_not_hex": (chunked(b"5g\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_space_before": (chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_space_after": (chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_tab_after": (chunked(b"5\t\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_two_words": (chunked(b"5 5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_nul_after": (chunked(b"5\0\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_bare_lf": (chunked(b"5\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_bare_cr": (chunked(b"5\rhello\r\n0\r\n\r\n"), 400),
    "chunk_size_two_crs": (chunked(b"5\r\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_comma": (chunked(b"5,5\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_size_in_unicode": (chunked("\u0665\r\nhello\r\n0\r\n\r\n".encode()), 400),
    "chunk_extension_ends_in_bare_lf": (chunked(b"5;a\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_empty_ends_in_bare_lf": (chunked(b"2;\nxx\r\n10\r\n\r\nAAAAAAAAAAAA\r\n0\r\n\r\n"), 400),
    "chunk_extension_with_bare_cr": (chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_with_nul": (chunked(b"5;a=\0\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_empty": (chunked(b"5;\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_without_value": (chunked(b"5;a=\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_space": (chunked(b"5 ;a=b\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_extension_open_quote": (chunked(b'5;a="\r\nhello\r\n0;"\r\n\r\n'), 400),
    "chunk_extension_open_quote_escaped": (chunked(b'5;a="\\"\r\nhello\r\n0\r\n\r\n'), 400),
    "chunk_extension_ends_in_backslash": (chunked(b'5;a="\\\r\nhello\r\n0\r\n\r\n'), 400),
    "chunk_extension_after_quote": (chunked(b'5;a="b"c\r\nhello\r\n0\r\n\r\n'), 400),
    "chunk_extension_of_last_chunk_bare_lf": (chunked(b"0;a\n\r\n") + SMUGGLED, 400),
    "chunk_extension_valid": (
        chunked(b'5;a;b=c;d="e;\\"f"\r\nhello\r\n0;x=y\r\n\r\n') + SMUGGLED,
        [(b"POST", b"/", b"hello"), ADMIN],
    ),
    "chunk_longer_than_its_size": (chunked(b"5\r\nhello!\r\n0\r\n\r\n"), 400),
    "chunk_shorter_than_its_size": (chunked(b"6\r\nhello\r\n0\r\n\r\n"), 400),
    "chunk_end_missing": (chunked(b"5\r\nhello0\r\n\r\n"), 400),
    "chunk_end_bare_lf": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "chunk_end_bare_cr": (chunked(b"5\r\nhello\r0\r\n\r\n"), 400),
    "chunk_end_cr_and_another_byte": (chunked(b"5\r\nhello\rX0\r\n\r\n"), 400),
    "chunk_end_two_crs": (chunked(b"5\r\nhello\r\r\n0\r\n\r\n"), 400),
    "chunk_end_other_bytes": (chunked(b"5\r\nhelloXX0\r\n\r\n"), 400),
    "chunk_last_of_many_zeros": (chunked(b"0000\r\n\r\n") + SMUGGLED, [(b"POST", b"/", b""), ADMIN]),
    "chunk_trailers_end_in_bare_lf": (chunked(b"0\r\n\n") + SMUGGLED, 400),
    "chunk_trailer_in_bare_lf": (chunked(b"0\r\nX: y\n\r\n") + SMUGGLED, 400),
    "chunk_trailer_content_length": (chunked(b"0\r\nContent-Length: 5\r\n\r\n") + SMUGGLED, 400),
    "chunk_trailer_transfer_encoding": (chunked(b"0\r\ntransfer-encoding: chunked\r\n\r\n"), 400),
    "chunk_trailer_host": (chunked(b"0\r\nHost: b\r\n\r\n"), 400),
    "chunk_trailer_upgrade": (chunked(b"0\r\nUpgrade: websocket\r\n\r\n"), 400),
    "chunk_trailer_folded": (chunked(b"0\r\nX: y\r\n z\r\n\r\n"), 400),
    "chunk_trailer_first_folded": (chunked(b"0\r\n x\r\n\r\n"), 400),
    "chunk_trailer_like_a_request": (chunked(b"0\r\nGET /admin HTTP/1.1\r\n\r\n"), 400),
    # Host and target
    "rfc_host_missing": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "rfc_host_twice": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "rfc_host_twice_equal": (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "rfc_host_twice_in_http_1_0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "rfc_host_with_space_before_colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "rfc_host_folded": (b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", 400),
    "rfc_host_list": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "rfc_host_joined": (b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    "rfc_host_userinfo": (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "rfc_host_path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "rfc_host_port_with_letters": (b"GET / HTTP/1.1\r\nHost: a:80b\r\n\r\n", 400),
    "rfc_host_two_ports": (b"GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", 400),
    "rfc_host_port_alone": (b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400),
    "rfc_host_bracket_open": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    "rfc_host_bracket_empty": (b"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 400),
    "rfc_host_after_bracket": (b"GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", 400),
    "absolute_form_with_other_host": (b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    "absolute_form_with_host_cut_short": (b"GET http://a.example/ HTTP/1.1\r\nHost: a.e\r\n\r\n", 400),
    "absolute_form_with_other_port": (b"GET http://a:81/ HTTP/1.1\r\nHost: a:80\r\n\r\n", 400),
    "absolute_form_with_userinfo": (b"GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "absolute_form_with_empty_host": (b"GET http:///admin HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "absolute_form_with_other_host_in_http_1_0": (b"GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n", 400),
    "absolute_form_without_host_in_http_1_0": (b"GET http://a/ HTTP/1.0\r\n\r\n", [(b"GET", b"http://a/", b"")]),
    "absolute_form": (b"GET http://A:80?b HTTP/1.1\r\nHost: a:80\r\n\r\n", [(b"GET", b"http://A:80?b", b"")]),
    "target_with_space": (b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_with_smuggled_line": (b"GET /\r\nHost: b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_with_tab": (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_with_nul": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_with_bare_cr": (b"GET /\rX HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_with_fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_relative": (b"GET admin HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_backslash": (b"GET \\admin HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_userinfo_trick": (b"GET @b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_asterisk_of_get": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target_scheme_alone": (b"GET http: HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect_to_path": (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect_without_port": (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect_with_empty_port": (b"CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect_with_length": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 400),
    "connect_with_chunked": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    # First lines and line ends
    "http_0_9": (b"GET /\r\n", 400),
    "version_missing": (b"GET / \r\nHost: a\r\n\r\n", 400),
    "version_lower_case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "version_of_two_digits": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "version_of_two_leading_digits": (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400),
    "version_1_2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "version_0_9": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "version_2_0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "version_then_space": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "version_then_tab": (b"GET / HTTP/1.1\t\r\nHost: a\r\n\r\n", 400),
    "version_then_two_crs": (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    "two_spaces_before_target": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two_spaces_before_version": (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab_before_target": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_with_nul": (b"GET\0 / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_after_space": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_after_bare_lf": (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_after_bare_cr": (b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_after_byte_order_mark": (b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method_missing": (b"/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bare_lf_after_request_line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare_lf_everywhere": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare_lf_ends_head": (b"GET / HTTP/1.1\r\nHost: a\r\n\n" + SMUGGLED, 400),
    "bare_lf_then_crlf": (b"GET / HTTP/1.1\r\nHost: a\n\r\n" + SMUGGLED, 400),
    "bare_cr_ends_head": (b"GET / HTTP/1.1\r\nHost: a\r\n\r" + SMUGGLED, 400),
    "bare_cr_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "bare_cr_in_name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r: a\r\n\r\n", 400),
    "two_crs_at_line_end": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n", 400),
    "nul_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    "nul_in_name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n", 400),
    "escape_in_value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n", 400),
    "blank_before_first_header": (b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n", 400),
    "tab_before_first_header": (b"GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n", 400),
    "line_of_blanks": (b"GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", 400),
    "folded_line": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "name_empty": (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    "name_with_space": (b"GET / HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n", 400),
    "name_with_high_byte": (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe4: b\r\n\r\n", 400),
    "line_without_colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    "second_request_line": (b"GET / HTTP/1.1\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "preface_after_a_request": (SMUGGLED + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "preface_misspelt": (b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", 505),
    "empty_lines_before_requests": (b"\r\n\r\n" + SMUGGLED + b"\r\n" + SMUGGLED, [ADMIN, ADMIN]),
    "upgrade_with_pipelined_request": (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n" + SMUGGLED,
        [(b"GET", b"/", b""), ADMIN],
    ),
}


@pytest.mark.parametrize(("data", "answer"), REQUESTS.values(), ids=REQUESTS)
def test_request(data, answer):
    transcript = read_in_all_cuts(requests, data)
    if isinstance(answer, int):
        assert transcript.fault is not None
        assert transcript.fault.status == answer
        # What led up to the fault never becomes a complete message; a request before it may.
        assert all(message.head.target == b"/admin" for message in transcript.messages if message.ended)
    else:
        assert transcript.fault is None
        complete = [message for message in transcript.messages if message.ended]
        assert [(message.head.method, message.head.target, message.content) for message in complete] == answer


def ok(fields: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

# Each as the answer to one GET: bytes, then the content that any client would read, or None for a refusal.
RESPONSES = {
    "cl_te": (ok(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"), None),
    "te_cl": (ok(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"), None),
    "cl_te_identity": (ok(b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n", b"hello"), None),
    "two_lengths": (ok(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), None),
    "two_equal_lengths": (ok(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), b"hello"),
    "length_list": (ok(b"Content-Length: 5, 5\r\n", b"hello"), None),
    "length_plus": (ok(b"Content-Length: +5\r\n", b"hello"), None),
    "te_in_http_1_0": (b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n0\r\n\r\n", None),
    "te_chunked_twice": (ok(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), None),
    "te_chunked_not_last": (ok(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), None),
    "te_chunked_last": (ok(b"Transfer-Encoding: gzip, chunked\r\n", b"1\r\nz\r\n0\r\n\r\n"), b"z"),
    "te_tab": (ok(b"Transfer-Encoding:\tchunked\r\n", b"0\r\n\r\n"), None),
    "split_by_bare_lf": (ok(b"X: y\nContent-Length: 0\r\n", POISON), None),
    "split_by_bare_cr": (ok(b"X: y\rContent-Length: 0\r\n", POISON), None),
    "folded": (ok(b"X: y\r\n z\r\nContent-Length: 0\r\n"), None),
    "blank_before_colon": (ok(b"Content-Length : 0\r\n"), None),
    "nul": (ok(b"X: \0\r\nContent-Length: 0\r\n"), None),
    "chunk_size_padded": (ok(CHUNKED, b"5   \r\nhello\r\n0 \r\n\r\n"), b"hello"),
    "chunk_size_tab": (ok(CHUNKED, b"5\t\r\nhello\r\n0\r\n\r\n"), None),
    "chunk_extension_bare_lf": (ok(CHUNKED, b"5;a\nhello\r\n0\r\n\r\n"), None),
    "chunk_trailer_length": (ok(CHUNKED, b"0\r\nContent-Length: 9\r\n\r\n"), None),
    "empty_line_first": (b"\r\n" + ok(b"Content-Length: 0\r\n"), None),
    "version_2": (b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n", None),
    "status_of_two_digits": (b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status_of_four_digits": (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status_below_100": (b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status_line_control": (b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n", None),
    "status_line_bare_cr": (b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n", None),
    "icy": (b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "switch_unasked": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", None),
}


@pytest.mark.parametrize(("data", "content"), RESPONSES.values(), ids=RESPONSES)
def test_response(data, content):
    transcript = read_in_all_cuts(lambda: responses(b"GET"), data)
    if content is None:
        assert transcript.fault is not None
        assert transcript.fault.status == 502
        assert not any(message.ended for message in transcript.messages)
    else:
        (message,) = transcript.messages
        assert (transcript.fault, message.content, message.ended) == (None, content, True)


@pytest.mark.parametrize(
    ("method", "first"),
    [
        (b"GET", ok(b"Content-Length: 5\r\n", b"hello")),
        (b"HEAD", ok(b"Content-Length: 5\r\n")),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 78\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_response_that_was_not_asked_for_is_refused(method, first):
    transcript = read_in_all_cuts(lambda: responses(method), first + POISON)
    assert [message.ended for message in transcript.messages] == [True]
    assert transcript.fault is not None
    assert (transcript.fault.status, transcript.fault.offset) == (502, len(first))
