/* One malformed safetensors file of each kind: every one is refused as MQ_E_FORMAT with a text that names the file, the
 * tensor (where there is one) and the rule, in bounded memory.  The bytes are built here, so that the list says what each
 * file is.  Rules S1 to S15 are those of the reader's header. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/safetensors.h"
#include "src/buf.h"
#include "tests/harness.h"

#define ENTRY(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
/* One tensor 'a' with these members, four bytes of data unless a case says otherwise. */
#define ONE(dtype, shape, offsets) "{" ENTRY("a", dtype, shape, offsets) "}"
#define GOOD ENTRY("a", "\"U8\"", "[4]", "[0,4]")
#define WITH(more) "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]," more "}}"

typedef struct text_case {
    const char *kind, *header;
    int data_bytes;
    const char *rule;   /* "S5" */
    const char *tensor; /* NULL where no tensor is to blame */
} text_case;

static const text_case TEXT_CASES[] = {
    /* S4: the header is UTF-8 */
    {"stray continuation byte in a name", "{\"\x80\":{}}", 0, "S4", NULL},
    {"overlong NUL in a name", "{\"\xc0\x80\":{}}", 0, "S4", NULL},
    {"overlong slash in a name", "{\"\xe0\x80\xaf\":{}}", 0, "S4", NULL},
    {"overlong four bytes", "{\"\xf0\x80\x80\x80\":{}}", 0, "S4", NULL},
    {"surrogate encoded in UTF-8", "{\"\xed\xa0\x80\":{}}", 0, "S4", NULL},
    {"above U+10FFFF", "{\"\xf4\x90\x80\x80\":{}}", 0, "S4", NULL},
    {"five-byte sequence", "{\"\xf8\x88\x80\x80\x80\":{}}", 0, "S4", NULL},
    {"byte 0xFF", "{\"\xff\":{}}", 0, "S4", NULL},
    {"Latin-1 name", "{\"gr\xfc\xdf" "e\":{}}", 0, "S4", NULL},
    {"sequence cut by the quote", "{\"\xe2\x82\":{}}", 0, "S4", NULL},
    {"sequence cut by the header's end", "{} \xe2\x82", 0, "S4", NULL},
    {"invalid UTF-8 in metadata", "{\"__metadata__\":{\"k\":\"\xfe\"}," GOOD "}", 4, "S4", NULL},
    {"invalid UTF-8 in a dtype", ONE("\"U8\xa0\"", "[4]", "[0,4]"), 4, "S4", NULL},
    {"invalid UTF-8 as padding", "{" GOOD "}\xa0", 4, "S4", NULL},
    /* S5: one JSON object */
    {"byte-order mark", "\xef\xbb\xbf{" GOOD "}", 4, "S5", NULL},
    {"only spaces", "        ", 0, "S5", NULL},
    {"array at the top", "[]", 0, "S5", NULL},
    {"null at the top", "null", 0, "S5", NULL},
    {"string at the top", "\"a\"", 0, "S5", NULL},
    {"number at the top", "12", 0, "S5", NULL},
    {"only an opening brace", "{", 0, "S5", NULL},
    {"no closing brace", "{" GOOD, 4, "S5", NULL},
    {"closing bracket instead of brace", "{" GOOD "]", 4, "S5", NULL},
    {"closing brace twice", "{" GOOD "}}", 4, "S5", NULL},
    {"comma behind the last tensor", "{" GOOD ",}", 4, "S5", NULL},
    {"comma before the first tensor", "{," GOOD "}", 4, "S5", NULL},
    {"no comma between tensors", "{" GOOD ENTRY("b", "\"U8\"", "[0]", "[4,4]") "}", 4, "S5", NULL},
    {"no colon behind a name", "{\"a\"{}}", 0, "S5", NULL},
    {"equals sign for the colon", "{\"a\"={}}", 0, "S5", NULL},
    {"name in single quotes", "{'a':{}}", 0, "S5", NULL},
    {"name without quotes", "{a:{}}", 0, "S5", NULL},
    {"number for a name", "{1:{}}", 0, "S5", NULL},
    {"comment", "{/* x */" GOOD "}", 4, "S5", NULL},
    {"text behind the object", "{" GOOD "} x", 4, "S5", NULL},
    {"second object", "{" GOOD "}{}", 4, "S5", NULL},
    {"form feed as white space", "{\f" GOOD "}", 4, "S5", NULL},
    {"vertical tab as white space", "{\v" GOOD "}", 4, "S5", NULL},
    {"no-break space as white space", "{\xc2\xa0" GOOD "}", 4, "S5", NULL},
    {"raw newline in a name", "{\"a\nb\":{}}", 0, "S5", NULL},
    {"raw tab in a name", "{\"a\tb\":{}}", 0, "S5", NULL},
    {"raw control character in a name", "{\"a\x01\":{}}", 0, "S5", NULL},
    {"unknown escape", "{\"\\x41\":{}}", 0, "S5", NULL},
    {"escape of three digits", "{\"\\u041\":{}}", 0, "S5", NULL},
    {"escape with a letter", "{\"\\u00g1\":{}}", 0, "S5", NULL},
    {"lone high surrogate", "{\"\\ud800\":{}}", 0, "S5", NULL},
    {"high surrogate before text", "{\"\\ud800abcdef\":{}}", 0, "S5", NULL},
    {"two high surrogates", "{\"\\ud800\\ud800\":{}}", 0, "S5", NULL},
    {"lone low surrogate", "{\"\\udc00\":{}}", 0, "S5", NULL},
    {"escaped NUL in a name", "{\"a\\u0000\":{}}", 0, "S5", NULL},
    {"escaped NUL in a dtype", ONE("\"U8\\u0000\"", "[4]", "[0,4]"), 4, "S5", "a"},
    {"name without its closing quote", "{\"abc", 0, "S5", NULL},
    {"backslash at the end", "{\"abc\\", 0, "S5", NULL},
    {"member without a colon", "{\"a\":{\"dtype\" \"U8\"}}", 0, "S5", "a"},
    {"member's name not a string", "{\"a\":{dtype:\"U8\"}}", 0, "S5", "a"},
    {"no comma between members", "{\"a\":{\"dtype\":\"U8\" \"shape\":[4]}}", 0, "S5", "a"},
    {"comma behind the last member", "{\"a\":{\"dtype\":\"U8\",}}", 0, "S5", "a"},
    {"tensor's object does not end", "{\"a\":{\"dtype\":\"U8\"", 0, "S5", "a"},
    {"unknown member: cut word", WITH("\"x\":nul"), 4, "S5", "a"},
    {"unknown member: leading zero", WITH("\"x\":01"), 4, "S5", "a"},
    {"unknown member: bare point", WITH("\"x\":1."), 4, "S5", "a"},
    {"unknown member: point first", WITH("\"x\":.5"), 4, "S5", "a"},
    {"unknown member: plus sign", WITH("\"x\":+1"), 4, "S5", "a"},
    {"unknown member: empty exponent", WITH("\"x\":1e"), 4, "S5", "a"},
    {"unknown member: lone minus", WITH("\"x\":-"), 4, "S5", "a"},
    {"unknown member: NaN", WITH("\"x\":NaN"), 4, "S5", "a"},
    {"unknown member: Infinity", WITH("\"x\":Infinity"), 4, "S5", "a"},
    {"unknown member: hexadecimal", WITH("\"x\":0x10"), 4, "S5", "a"},
    {"unknown member: no value", WITH("\"x\":"), 4, "S5", "a"},
    {"unknown member: too deep", WITH("\"x\":[[[1]]]"), 4, "S5", "a"},
    {"unknown member: object without a colon", WITH("\"x\":{\"y\"}"), 4, "S5", "a"},
    {"unknown member: array with a trailing comma", WITH("\"x\":[1,]"), 4, "S5", "a"},
    /* S6: dtype, shape and data_offsets */
    {"tensor is null", "{\"a\":null}", 0, "S6", "a"},
    {"tensor is an array", "{\"a\":[\"U8\",[4],[0,4]]}", 4, "S6", "a"},
    {"tensor is a string", "{\"a\":\"U8\"}", 0, "S6", "a"},
    {"tensor is a number", "{\"a\":4}", 0, "S6", "a"},
    {"tensor is true", "{\"a\":true}", 0, "S6", "a"},
    {"tensor is an empty object", "{\"a\":{}}", 0, "S6", "a"},
    {"dtype is missing", "{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "S6", "a"},
    {"shape is missing", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4, "S6", "a"},
    {"data_offsets is missing", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "S6", "a"},
    {"members in capitals", "{\"a\":{\"Dtype\":\"U8\",\"Shape\":[4],\"Data_offsets\":[0,4]}}", 4, "S6", "a"},
    {"dtype twice", WITH("\"dtype\":\"U8\""), 4, "S6", "a"},
    {"shape twice", WITH("\"shape\":[4]"), 4, "S6", "a"},
    {"data_offsets twice", WITH("\"data_offsets\":[0,4]"), 4, "S6", "a"},
    {"dtype twice, once escaped", WITH("\"d\\u0074ype\":\"U8\""), 4, "S6", "a"},
    {"unknown member twice", WITH("\"x\":1,\"x\":2"), 4, "S6", "a"},
    {"seventeen unknown members",
     WITH("\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":0,\"6\":0,\"7\":0,\"8\":0,\"9\":0,\"10\":0,\"11\":0,\"12\":0,"
          "\"13\":0,\"14\":0,\"15\":0,\"16\":0,\"17\":0"),
     4, "S6", "a"},
    {"dtype in lower case", ONE("\"u8\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype unknown", ONE("\"U128\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is PyTorch's name", ONE("\"torch.uint8\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype with a suffix", ONE("\"F8_E4M3FN\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is a prefix", ONE("\"F8_E4M\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype with a space", ONE("\"U8 \"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is empty", ONE("\"\"", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is a number", ONE("8", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is null", ONE("null", "[4]", "[0,4]"), 4, "S6", "a"},
    {"dtype is an array", ONE("[\"U8\"]", "[4]", "[0,4]"), 4, "S6", "a"},
    {"data_offsets is null", ONE("\"U8\"", "[4]", "null"), 4, "S6", "a"},
    {"data_offsets is an object", ONE("\"U8\"", "[4]", "{\"begin\":0,\"end\":4}"), 4, "S6", "a"},
    {"data_offsets is a string", ONE("\"U8\"", "[4]", "\"0,4\""), 4, "S6", "a"},
    {"data_offsets is a number", ONE("\"U8\"", "[4]", "4"), 4, "S6", "a"},
    {"data_offsets is empty", ONE("\"U8\"", "[4]", "[]"), 4, "S6", "a"},
    {"data_offsets has one number", ONE("\"U8\"", "[4]", "[4]"), 4, "S6", "a"},
    {"data_offsets has three numbers", ONE("\"U8\"", "[4]", "[0,4,4]"), 4, "S6", "a"},
    {"data_offsets begin below zero", ONE("\"U8\"", "[4]", "[-4,0]"), 4, "S6", "a"},
    {"data_offsets end below zero", ONE("\"U8\"", "[4]", "[0,-4]"), 4, "S6", "a"},
    {"data_offsets with minus zero", ONE("\"U8\"", "[4]", "[-0,4]"), 4, "S6", "a"},
    {"data_offsets with a fraction", ONE("\"U8\"", "[4]", "[0,4.0]"), 4, "S6", "a"},
    {"data_offsets with an exponent", ONE("\"U8\"", "[4]", "[0,4e0]"), 4, "S6", "a"},
    {"data_offsets with a capital exponent", ONE("\"U8\"", "[4]", "[0,4E0]"), 4, "S6", "a"},
    {"data_offsets at 2^63", ONE("\"U8\"", "[4]", "[0,9223372036854775808]"), 4, "S6", "a"},
    {"data_offsets at 2^64 + 4", ONE("\"U8\"", "[4]", "[0,18446744073709551620]"), 4, "S6", "a"},
    {"data_offsets with a leading zero", ONE("\"U8\"", "[4]", "[0,04]"), 4, "S6", "a"},
    {"data_offsets of strings", ONE("\"U8\"", "[4]", "[\"0\",\"4\"]"), 4, "S6", "a"},
    {"data_offsets of null", ONE("\"U8\"", "[4]", "[null,4]"), 4, "S6", "a"},
    {"data_offsets nested", ONE("\"U8\"", "[4]", "[[0,4]]"), 4, "S6", "a"},
    {"data_offsets with a trailing comma", ONE("\"U8\"", "[4]", "[0,4,]"), 4, "S6", "a"},
    {"name is empty", "{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "S6", NULL},
    /* S7: shape */
    {"shape is null", ONE("\"U8\"", "null", "[0,4]"), 4, "S7", "a"},
    {"shape is an object", ONE("\"U8\"", "{\"0\":4}", "[0,4]"), 4, "S7", "a"},
    {"shape is a number", ONE("\"U8\"", "4", "[0,4]"), 4, "S7", "a"},
    {"shape is a string", ONE("\"U8\"", "\"4\"", "[0,4]"), 4, "S7", "a"},
    {"shape does not end", ONE("\"U8\"", "[4", "[0,4]"), 4, "S7", "a"},
    {"shape below zero", ONE("\"U8\"", "[-4]", "[0,4]"), 4, "S7", "a"},
    {"shape twice below zero", ONE("\"U8\"", "[-2,-2]", "[0,4]"), 4, "S7", "a"},
    {"shape with minus zero", ONE("\"U8\"", "[-0]", "[0,0]"), 0, "S7", "a"},
    {"shape with a fraction", ONE("\"U8\"", "[4.0]", "[0,4]"), 4, "S7", "a"},
    {"shape with an exponent", ONE("\"U8\"", "[4e0]", "[0,4]"), 4, "S7", "a"},
    {"shape nested", ONE("\"U8\"", "[[4]]", "[0,4]"), 4, "S7", "a"},
    {"shape of strings", ONE("\"U8\"", "[\"4\"]", "[0,4]"), 4, "S7", "a"},
    {"shape of null", ONE("\"U8\"", "[null]", "[0,4]"), 4, "S7", "a"},
    {"shape of true", ONE("\"U8\"", "[true]", "[0,4]"), 4, "S7", "a"},
    {"shape at 2^63", ONE("\"U8\"", "[9223372036854775808]", "[0,4]"), 4, "S7", "a"},
    {"shape at 2^64 + 4", ONE("\"U8\"", "[18446744073709551620]", "[0,4]"), 4, "S7", "a"},
    {"shape of 100 digits",
     ONE("\"U8\"", "[1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000]",
         "[0,4]"),
     4, "S7", "a"},
    {"shape with a leading zero", ONE("\"U8\"", "[04]", "[0,4]"), 4, "S7", "a"},
    {"shape with a trailing comma", ONE("\"U8\"", "[4,]", "[0,4]"), 4, "S7", "a"},
    {"shape with two commas", ONE("\"U8\"", "[2,,2]", "[0,4]"), 4, "S7", "a"},
    {"shape without commas", ONE("\"U8\"", "[2 2]", "[0,4]"), 4, "S7", "a"},
    {"shape of nine dimensions", ONE("\"U8\"", "[1,1,1,1,1,1,1,1,4]", "[0,4]"), 4, "S7", "a"},
    /* S8: the byte count does not overflow */
    {"two dimensions overflow", ONE("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "S8", "a"},
    {"overflow to a small number", ONE("\"U8\"", "[4294967297,4294967296]", "[0,4]"), 4, "S8", "a"},
    {"overflow by the dtype", ONE("\"F64\"", "[1152921504606846976]", "[0,0]"), 0, "S8", "a"},
    {"overflow in bits only", ONE("\"U8\"", "[2305843009213693952]", "[0,2305843009213693952]"), 4, "S8", "a"},
    {"overflow before a zero", ONE("\"U8\"", "[4294967296,4294967296,0]", "[0,0]"), 0, "S8", "a"},
    {"overflow behind a zero", ONE("\"U8\"", "[0,4294967296,4294967296]", "[0,0]"), 0, "S8", "a"},
    {"eight dimensions overflow", ONE("\"U8\"", "[65536,65536,65536,65536,1,1,1,1]", "[0,0]"), 0, "S8", "a"},
    /* S9: whole bytes */
    {"one F4", ONE("\"F4\"", "[1]", "[0,1]"), 1, "S9", "a"},
    {"F4 scalar", ONE("\"F4\"", "[]", "[0,1]"), 1, "S9", "a"},
    {"three by three F4", ONE("\"F4\"", "[3,3]", "[0,5]"), 5, "S9", "a"},
    {"one F6_E2M3", ONE("\"F6_E2M3\"", "[1]", "[0,1]"), 1, "S9", "a"},
    {"two F6_E3M2", ONE("\"F6_E3M2\"", "[2]", "[0,2]"), 2, "S9", "a"},
    /* S10: offsets span what dtype and shape need */
    {"span too short", ONE("\"U8\"", "[4]", "[0,3]"), 3, "S10", "a"},
    {"span too long", ONE("\"U8\"", "[4]", "[0,5]"), 5, "S10", "a"},
    {"span empty", ONE("\"U8\"", "[4]", "[0,0]"), 0, "S10", "a"},
    {"span counts elements, not bytes", ONE("\"BF16\"", "[4]", "[0,4]"), 4, "S10", "a"},
    {"span of an empty tensor", ONE("\"U8\"", "[0]", "[0,4]"), 4, "S10", "a"},
    {"span of a scalar is empty", ONE("\"F32\"", "[]", "[0,0]"), 0, "S10", "a"},
    {"F4 counted as bytes", ONE("\"F4\"", "[4]", "[0,4]"), 4, "S10", "a"},
    {"offsets swapped", ONE("\"U8\"", "[4]", "[4,0]"), 4, "S10", "a"},
    {"offsets far apart", ONE("\"U8\"", "[4]", "[0,9223372036854775807]"), 4, "S10", "a"},
    /* S11: no hole, no overlap */
    {"first tensor begins at 1", ONE("\"U8\"", "[4]", "[1,5]"), 5, "S11", "a"},
    {"offsets count from the file's start", ONE("\"U8\"", "[4]", "[61,65]"), 4, "S11", "a"},
    {"hole of one byte", "{" GOOD "," ENTRY("b", "\"U8\"", "[4]", "[5,9]") "}", 9, "S11", "b"},
    {"overlap of one byte", "{" GOOD "," ENTRY("b", "\"U8\"", "[4]", "[3,7]") "}", 7, "S11", "b"},
    {"two tensors share their bytes", "{" GOOD "," ENTRY("b", "\"U8\"", "[4]", "[0,4]") "}", 4, "S11", "b"},
    {"tensor inside another", "{" GOOD "," ENTRY("b", "\"U8\"", "[2]", "[1,3]") "}", 4, "S11", "b"},
    {"tensor at the start of another", "{" GOOD "," ENTRY("b", "\"U8\"", "[2]", "[0,2]") "}", 4, "S11", "a"},
    {"empty tensor inside another", "{" GOOD "," ENTRY("b", "\"U8\"", "[0]", "[2,2]") "}", 4, "S11", "b"},
    {"empty tensor behind the end", "{" GOOD "," ENTRY("b", "\"U8\"", "[0]", "[5,5]") "}", 4, "S11", "b"},
    {"empty tensor at 2^63 - 1", ONE("\"U8\"", "[0]", "[9223372036854775807,9223372036854775807]"), 0, "S11", "a"},
    /* S12: the last tensor ends where the file does */
    {"one byte behind the data", "{" GOOD "}", 5, "S12", NULL},
    {"a page behind the data", "{" GOOD "}", 4100, "S12", NULL},
    {"data behind an empty header", "{}", 4, "S12", NULL},
    {"data behind metadata alone", "{\"__metadata__\":{}}", 1, "S12", NULL},
    {"data behind empty tensors", ONE("\"U8\"", "[0]", "[0,0]"), 1, "S12", NULL},
    {"data cut by one byte", "{" GOOD "}", 3, "S12", "a"},
    {"no data at all", "{" GOOD "}", 0, "S12", "a"},
    {"second tensor cut", "{" GOOD "," ENTRY("b", "\"F32\"", "[2]", "[4,12]") "}", 8, "S12", "b"},
    {"a tensor of 2^59 bytes", ONE("\"U8\"", "[1073741824,536870912]", "[0,576460752303423488]"), 4, "S12", "a"},
    /* S13: metadata maps strings to strings */
    {"metadata is null", "{\"__metadata__\":null," GOOD "}", 4, "S13", NULL},
    {"metadata is a number", "{\"__metadata__\":1," GOOD "}", 4, "S13", NULL},
    {"metadata is a string", "{\"__metadata__\":\"pt\"," GOOD "}", 4, "S13", NULL},
    {"metadata is an array", "{\"__metadata__\":[\"format\",\"pt\"]," GOOD "}", 4, "S13", NULL},
    {"metadata is false", "{\"__metadata__\":false," GOOD "}", 4, "S13", NULL},
    {"metadata value is a number", "{\"__metadata__\":{\"k\":1}," GOOD "}", 4, "S13", NULL},
    {"metadata value is null", "{\"__metadata__\":{\"k\":null}," GOOD "}", 4, "S13", NULL},
    {"metadata value is true", "{\"__metadata__\":{\"k\":true}," GOOD "}", 4, "S13", NULL},
    {"metadata value is an object", "{\"__metadata__\":{\"k\":{\"l\":\"m\"}}," GOOD "}", 4, "S13", NULL},
    {"metadata value is an array", "{\"__metadata__\":{\"k\":[\"l\"]}," GOOD "}", 4, "S13", NULL},
    {"metadata key twice", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," GOOD "}", 4, "S13", NULL},
    {"metadata without a comma", "{\"__metadata__\":{\"k\":\"1\" \"l\":\"2\"}," GOOD "}", 4, "S13", NULL},
    {"metadata name escaped", "{\"__metadat\\u0061__\":0," GOOD "}", 4, "S13", NULL},
    {"metadata does not end", "{\"__metadata__\":{\"k\":\"1\"", 0, "S13", NULL},
    /* S14: no name twice */
    {"name twice, one behind the other", "{" GOOD "," ENTRY("a", "\"U8\"", "[4]", "[4,8]") "}", 8, "S14", "a"},
    {"same entry twice", "{" GOOD "," GOOD "}", 4, "S14", "a"},
    {"name twice, once escaped", "{" GOOD "," ENTRY("\\u0061", "\"U8\"", "[4]", "[4,8]") "}", 8, "S14", "a"},
    {"empty tensor twice", "{" ENTRY("e", "\"U8\"", "[0]", "[0,0]") "," ENTRY("e", "\"U8\"", "[0]", "[0,0]") "}", 0,
     "S14", "e"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}," GOOD "}", 4, "S14", NULL},
    /* S15: no tensor called __metadata__ */
    {"tensor called __metadata__", "{" ENTRY("__metadata__", "\"U8\"", "[4]", "[0,4]") "}", 4, "S15", NULL},
    {"tensor called __metadata__, offsets first",
     "{\"__metadata__\":{\"data_offsets\":[0,4],\"dtype\":\"U8\",\"shape\":[4]}}", 4, "S15", NULL},
};
enum { N_TEXT = sizeof TEXT_CASES / sizeof TEXT_CASES[0] };

static int64_t n_kinds;

/* A file of 8 bytes n, then header, then data_bytes zeros. */
static const char *write_file(uint64_t n, const char *header, size_t header_bytes, int64_t data_bytes)
{
    const char *dir = mq_test_dir();
    static char path[4200];
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    FILE *f = fopen(path, "wb");
    ck_assert(f != NULL);
    uint8_t frame[8];
    for (int i = 0; i < 8; i++)
        frame[i] = (uint8_t)(n >> (8 * i));
    ck_assert_uint_eq(fwrite(frame, 1, 8, f), 8);
    ck_assert_uint_eq(fwrite(header, 1, header_bytes, f), header_bytes);
    for (int64_t i = 0; i < data_bytes; i++)
        fputc(0, f);
    fclose(f);
    return path;
}

/* Opening path fails with status; the text names file, rule and tensor. */
static void refused(const char *kind, const char *path, mq_status status, const char *rule, const char *tensor)
{
    mq_err err;
    mq_safetensors *s = (mq_safetensors *)&err;
    mq_status st = mq_safetensors_open(&s, path, &err);
    ck_assert_msg(st == status, "%s: status %s (%s)", kind, mq_status_name(st), st ? err.text : "accepted");
    ck_assert_ptr_null(s);
    char want[200];
    if (rule[0] == 'S')
        snprintf(want, sizeof want, "rule %s:", rule);
    else
        snprintf(want, sizeof want, "%s", rule);
    ck_assert_msg(strstr(err.text, want) != NULL, "%s: '%s' lacks '%s'", kind, err.text, want);
    ck_assert_msg(strncmp(err.text, path, strlen(path)) == 0, "%s: '%s' lacks the file", kind, err.text);
    if (tensor) {
        snprintf(want, sizeof want, "tensor '%s'", tensor);
        ck_assert_msg(strstr(err.text, want) != NULL, "%s: '%s' lacks %s", kind, err.text, want);
    }
    n_kinds++;
}

static void refused_header(const char *kind, const mq_buf *header, const char *rule, const char *tensor)
{
    refused(kind, write_file((uint64_t)header->n_bytes, header->data, (size_t)header->n_bytes, 4), MQ_E_FORMAT, rule,
            tensor);
}

static void set_size(const char *path, int64_t n_bytes)
{
    ck_assert_int_eq(truncate(path, n_bytes), 0);
}

static void headers(void)
{
    for (int i = 0; i < N_TEXT; i++) {
        const text_case *c = &TEXT_CASES[i];
        for (int k = 0; k < i; k++)
            ck_assert_str_ne(TEXT_CASES[k].kind, c->kind);
        size_t n = strlen(c->header);
        refused(c->kind, write_file(n, c->header, n, c->data_bytes), MQ_E_FORMAT, c->rule, c->tensor);
    }
}

static void repeat(mq_buf *b, const char *s, int n)
{
    for (int i = 0; i < n; i++)
        mq_buf_str(b, s);
}

/* Headers too long to write down. */
static void long_headers(void)
{
    static const char rest[] = "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
    mq_buf b = mq_buf_empty();
    mq_buf_str(&b, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1");
    repeat(&b, ",1", 9999);
    mq_buf_str(&b, "],\"data_offsets\":[0,1]}}");
    refused_header("shape of 10,000 dimensions", &b, "S7", "a");

    mq_buf_clear(&b);
    mq_buf_str(&b, "{\"");
    repeat(&b, "0123456789abcdef", 1 << 16);
    mq_buf_str(&b, rest);
    refused_header("name of 1 MiB", &b, "S6", NULL);

    mq_buf_clear(&b);
    mq_buf_str(&b, "{\"");
    repeat(&b, "n", 1025);
    mq_buf_str(&b, rest);
    refused_header("name of 1025 bytes", &b, "S6", NULL);

    mq_buf_clear(&b);
    mq_buf_str(&b, "{\"a\":{\"x\":");
    repeat(&b, "[", 10000);
    refused_header("arrays 10,000 deep", &b, "S5", "a");

    mq_buf_clear(&b);
    repeat(&b, "{\"a\":", 10000);
    refused_header("objects 10,000 deep", &b, "S5", "a");

    mq_buf_clear(&b);
    mq_buf_str(&b, "{\"a\":{\"dtype\":\"");
    repeat(&b, "U8", 100000);
    mq_buf_str(&b, "\",\"shape\":[4],\"data_offsets\":[0,4]}}");
    refused_header("dtype of 200,000 bytes", &b, "S6", "a");

    mq_buf_clear(&b);
    mq_buf_append(&b, "{\0", 2);
    mq_buf_str(&b, GOOD "}");
    refused_header("NUL between tokens", &b, "S5", NULL);

    mq_buf_clear(&b);
    mq_buf_str(&b, "{" GOOD "}");
    mq_buf_append(&b, "\0\0\0\0", 4);
    refused_header("padding of NUL bytes", &b, "S5", NULL);

    mq_buf_clear(&b);
    mq_buf_append(&b, "\0\0\0\0", 4);
    mq_buf_str(&b, "{" GOOD "}");
    refused_header("NUL bytes in front", &b, "S5", NULL);

    mq_buf_clear(&b);
    mq_buf_append(&b, "{\"a\0b\":{}}", 10);
    refused_header("raw NUL in a name", &b, "S5", NULL);

    mq_buf_clear(&b);
    mq_buf_append(&b, "{\0\"\0a\0\"\0:\0{\0}\0}\0", 16);
    refused_header("UTF-16 header", &b, "S5", NULL);
    mq_buf_release(&b);
}

/* The first eight bytes and the file's size. */
static void frames(void)
{
    static const char good[] = "{" GOOD "}";
    size_t n = sizeof good - 1;
    const char *path;
    for (int k = 0; k < 8; k++) {
        char kind[32];
        snprintf(kind, sizeof kind, "file of %d bytes", k);
        path = write_file(n, good, n, 4);
        set_size(path, k);
        refused(kind, path, MQ_E_FORMAT, "S1", NULL);
    }
    refused("N is 0", write_file(0, good, n, 4), MQ_E_FORMAT, "S5", NULL);
    refused("N is 0 and nothing follows", write_file(0, good, 0, 0), MQ_E_FORMAT, "S5", NULL);
    refused("N is 1", write_file(1, good, n, 4), MQ_E_FORMAT, "S5", NULL);
    refused("N one too small", write_file(n - 1, good, n, 4), MQ_E_FORMAT, "S5", NULL);
    refused("N one too large", write_file(n + 1, good, n, 4), MQ_E_FORMAT, "S5", NULL);
    refused("N one above the rest of the file", write_file(n + 5, good, n, 4), MQ_E_FORMAT, "S3", NULL);
    refused("N counts the whole file", write_file(n + 12, good, n, 4), MQ_E_FORMAT, "S3", NULL);
    refused("N at the limit, file short", write_file(100000000, good, n, 4), MQ_E_FORMAT, "S3", NULL);
    refused("N one above the limit", write_file(100000001, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    refused("N is 2^32", write_file((uint64_t)1 << 32, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    refused("N is 2^63", write_file((uint64_t)1 << 63, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    refused("N is 2^64 - 1", write_file(UINT64_MAX, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    refused("N is 2^64 - 8", write_file(UINT64_MAX - 7, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    refused("N is big-endian", write_file((uint64_t)n << 56, good, n, 4), MQ_E_FORMAT, "S2", NULL);
    path = write_file(100000000, good, 0, 0);
    set_size(path, (int64_t)1 << 40);
    refused("sparse file, header of zeros", path, MQ_E_FORMAT, "S5", NULL);
    path = write_file(0, good, 0, 0);
    set_size(path, (int64_t)1 << 40);
    refused("sparse file of zeros", path, MQ_E_FORMAT, "S5", NULL);
    path = write_file(n, good, n, 4);
    set_size(path, (int64_t)1 << 40);
    refused("sparse tail behind the data", path, MQ_E_FORMAT, "S12", NULL);
}

static const char *write_text(const char *text)
{
    static char path[4200];
    snprintf(path, sizeof path, "%s/x.safetensors", mq_test_dir());
    FILE *f = fopen(path, "wb");
    ck_assert(f != NULL);
    fputs(text, f);
    fclose(f);
    return path;
}

/* Things that are not safetensors files at all. */
static void strangers(void)
{
    char path[4200];
    refused("Git LFS pointer",
            write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4841\n"), MQ_E_FORMAT,
            "looks like a Git LFS pointer", NULL);
    refused("HTML page", write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>"), MQ_E_FORMAT, "S2", NULL);
    refused("zip archive", write_text("PK\003\004\024\b\b\b more"), MQ_E_FORMAT, "S2", NULL);
    refused("GGUF file", write_text("GGUF\003 aa and more of it"), MQ_E_FORMAT, "S2", NULL);
    refused("a folder", mq_test_dir(), MQ_E_FORMAT, "not a regular file", NULL);
    snprintf(path, sizeof path, "%s/fifo", mq_test_dir());
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    refused("a FIFO", path, MQ_E_FORMAT, "not a regular file", NULL);
    refused("a device", "/dev/zero", MQ_E_FORMAT, "not a regular file", NULL);
    snprintf(path, sizeof path, "%s/loop", mq_test_dir());
    ck_assert_int_eq(symlink("loop", path), 0);
    refused("a symbolic link to itself", path, MQ_E_IO, "", NULL);
}

START_TEST(every_kind_of_damage_is_refused_with_file_tensor_and_rule)
{
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    headers();
    long_headers();
    frames();
    strangers();
    getrusage(RUSAGE_SELF, &after);
    printf("malformed files refused: %lld kinds, memory grew by %ld MB at most\n", (long long)n_kinds,
           (after.ru_maxrss - before.ru_maxrss) / 1024);
    ck_assert_int_ge(n_kinds, 150);
    ck_assert_int_lt(after.ru_maxrss - before.ru_maxrss, 256 * 1024); /* one header of 100 MB and its copies */
}
END_TEST

START_TEST(a_file_cut_anywhere_is_refused)
{
    static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"}," GOOD "," ENTRY("b", "\"F32\"", "[]", "[4,8]") "}";
    size_t n = sizeof good - 1;
    mq_err err;
    mq_safetensors *s;
    const char *path = write_file(n, good, n, 8);
    mq_assert_ok(mq_safetensors_open(&s, path, &err), &err);
    mq_safetensors_close(s);
    for (int64_t k = (int64_t)n + 15; k >= 0; k--) {
        set_size(path, k);
        ck_assert_int_eq(mq_safetensors_open(&s, path, &err), MQ_E_FORMAT);
        ck_assert(strstr(err.text, "rule S") != NULL);
    }
}
END_TEST

START_TEST(any_changed_byte_is_read_or_refused)
{
    static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"}," GOOD "," ENTRY("b", "\"F32\"", "[]", "[4,8]") "}";
    char header[sizeof good];
    for (size_t i = 0; i < sizeof good - 1; i++) {
        for (int v = 0; v < 256; v++) {
            mq_err err = {MQ_OK, ""};
            mq_safetensors *s;
            memcpy(header, good, sizeof good);
            header[i] = (char)v;
            mq_status st = mq_safetensors_parse(&s, header, sizeof good - 1, 8, "mem", &err);
            ck_assert(st == MQ_OK || (st == MQ_E_FORMAT && strstr(err.text, "mem: ") == err.text));
            mq_safetensors_close(s);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("safetensors_malformed");
    TCase *t = tcase_create("refused");
    tcase_add_test(t, every_kind_of_damage_is_refused_with_file_tensor_and_rule);
    tcase_add_test(t, a_file_cut_anywhere_is_refused);
    tcase_add_test(t, any_changed_byte_is_read_or_refused);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
