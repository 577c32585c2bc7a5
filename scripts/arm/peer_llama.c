/* What llama.cpp does for some tokens, to be counted: scripts/arm/peers builds it for AArch64 and runs it.
 *
 *     peer_llama MODEL.gguf PROMPT TIMES TOKENS
 *
 * Reads a prompt of PROMPT ids TIMES times, each time into an empty context, then feeds TOKENS ids one by one.
 * One thread; nothing is sampled. peer_flatlm.py does the same with the same ids. The settings are llama-bench's
 * (flash attention where llama.cpp finds it good, K/V in F16, weights repacked), at the context's size given here.
 */
#include "llama.h"
#include <stdio.h>
#include <stdlib.h>

enum { CONTEXT = 512 };

static void silent(enum ggml_log_level level, const char *text, void *unused)
{
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

static void feed(struct llama_context *context, llama_token *ids, int count)
{
    if (llama_decode(context, llama_batch_get_one(ids, count))) {
        fprintf(stderr, "peer_llama: llama_decode of %d ids failed\n", count);
        exit(1);
    }
    llama_synchronize(context);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: peer_llama MODEL.gguf PROMPT TIMES TOKENS\n");
        return 2;
    }
    int prompt = atoi(argv[2]), times = atoi(argv[3]), tokens = atoi(argv[4]);
    if (prompt < 1 || tokens < 0 || prompt + tokens > CONTEXT) {
        fprintf(stderr, "peer_llama: 1 to %d ids fit the context\n", CONTEXT);
        return 2;
    }
    llama_log_set(silent, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model)
        return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = CONTEXT;
    params.n_threads = params.n_threads_batch = 1;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context)
        return 1;

    llama_token ids[CONTEXT];
    int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int i = 0; i < CONTEXT; i++)
        ids[i] = (7919 * i + 13) % vocabulary;
    for (int i = 0; i < times; i++) {
        llama_memory_clear(llama_get_memory(context), true);
        feed(context, ids, prompt);
    }
    for (int i = 0; i < tokens; i++)
        feed(context, ids + prompt + i, 1);
    printf("%s, logit 0: %g\n", llama_print_system_info(), llama_get_logits(context)[0]);
    return 0;
}
