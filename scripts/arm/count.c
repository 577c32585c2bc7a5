/* Counts the AArch64 instructions that a process under qemu-user executes, by class.
 *
 *     scripts/arm/run cortex-a76 --count FILE program.py       one JSON object in FILE when the process ends
 *
 * Counts are exact and repeatable with one thread (OPENBLAS_NUM_THREADS=1, -t 1): threads add to the counters
 * without locks. What one token costs is the difference of two runs that differ by so many tokens. They are
 * instructions, not time.
 *
 * Written against version 1 of QEMU's TCG plugin interface (QEMU 7.2, "QEMU TCG Plugins" in its documentation);
 * Debian ships no header for it, hence the declarations.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct block;
struct instruction;

extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int operation, void *counter, uint64_t add);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

/* The first row whose masked bits match gives the class. Encodings: Arm Architecture Reference Manual, C4.1. */
enum class { DOT, MATRIX, VECTOR, VECTOR_LOAD, VECTOR_STORE, LOAD, STORE, BRANCH, OTHER, CLASSES };

static const char *const names[CLASSES] = {
    "dot", "matrix", "vector", "vector_load", "vector_store", "load", "store", "branch", "other",
};

static const struct row { uint32_t mask, bits; enum class class; } rows[] = {
    {0x9F20FC00, 0x0E009400, DOT},          /* SDOT, UDOT */
    {0x9F00F400, 0x0F00E000, DOT},          /* the same by lane */
    {0xBF20FC00, 0x0E009C00, DOT},          /* USDOT */
    {0xDFE0F400, 0x4E80A400, MATRIX},       /* SMMLA, UMMLA, USMMLA */
    {0x0E000000, 0x0E000000, VECTOR},       /* other SIMD and floating point */
    {0x3E400000, 0x2C400000, VECTOR_LOAD},  /* LDP, LDNP */
    {0x3E000000, 0x2C000000, VECTOR_STORE}, /* STP, STNP */
    {0x3F000000, 0x1C000000, VECTOR_LOAD},  /* LDR, literal */
    {0xBE400000, 0x0C400000, VECTOR_LOAD},  /* LD1 to LD4, LD1R to LD4R */
    {0xBE000000, 0x0C000000, VECTOR_STORE}, /* ST1 to ST4 */
    {0x3E400000, 0x3C400000, VECTOR_LOAD},  /* LDR, LDUR */
    {0x3E000000, 0x3C000000, VECTOR_STORE}, /* STR, STUR */
    {0x3B000000, 0x18000000, LOAD},         /* LDR, literal */
    {0x3A400000, 0x28400000, LOAD},         /* LDP, LDNP */
    {0x3A000000, 0x28000000, STORE},        /* STP, STNP */
    {0x3AC00000, 0x38000000, STORE},        /* STR, STRB, STRH: opc is 00 */
    {0x3A000000, 0x38000000, LOAD},         /* LDR and kin */
    {0x3F400000, 0x08400000, LOAD},         /* exclusive, acquire */
    {0x3F000000, 0x08000000, STORE},        /* exclusive, release */
    {0x1C000000, 0x14000000, BRANCH},       /* with exceptions and system instructions */
};

static uint64_t counts[CLASSES];
static FILE *out;

static enum class class_of(uint32_t word)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if ((word & rows[i].mask) == rows[i].bits)
            return rows[i].class;
    return OTHER;
}

/* A translated block executes as a whole: one addition per class and block. */
static void on_translation(plugin_id id, struct block *block)
{
    uint64_t found[CLASSES] = {0};
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        found[class_of(word)]++;
    }
    for (int c = 0; c < CLASSES; c++)
        if (found[c])
            qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &counts[c], found[c]);
}

static void on_exit_of_process(plugin_id id, void *unused)
{
    uint64_t total = 0;
    for (int c = 0; c < CLASSES; c++)
        total += counts[c];
    fprintf(out, "{\"total\": %llu", (unsigned long long)total);
    for (int c = 0; c < CLASSES; c++)
        fprintf(out, ", \"%s\": %llu", names[c], (unsigned long long)counts[c]);
    fprintf(out, "}\n");
    fflush(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    out = stderr;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4) && !(out = fopen(argv[i] + 4, "w")))
            return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit_of_process, NULL);
    return 0;
}
