/* SPDX-License-Identifier: Apache-2.0
 *
 * Plugin of qemu-user that counts the guest's instructions. Whenever the guest calls
 * getpgid(0x5eed00), which fails and does nothing else, it prints "COUNT n" to stderr.
 *
 *     gcc -O2 -shared -fPIC -o count.so count.c        (for a guest of x86-64: -DGETPGID=121)
 *
 * The declarations are those of qemu-plugin.h, version 1, which Debian does not package.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
#ifndef GETPGID
#define GETPGID 155 /* aarch64's number of the call; x86-64's is 121 */
#endif
#define MARK 0x5eed00

struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void translated(uint64_t, struct qemu_plugin_tb *);
typedef void called(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                    uint64_t, uint64_t, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, translated *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op,
                                                     void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t, called *);

EXPORT int qemu_plugin_version = 1;
static uint64_t executed;

static void on_translation(uint64_t id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &executed,
                                             qemu_plugin_tb_n_insns(block));
}

static void on_call(uint64_t id, unsigned cpu, int64_t number, uint64_t first, uint64_t b,
                    uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETPGID && first == MARK) {
        fprintf(stderr, "COUNT %" PRIu64 "\n", executed);
    }
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    return 0;
}
