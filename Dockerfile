# Serves a model on a CPU, see docs/publishing.md. This file was not built where it was written.
#
#   docker build -t dualground .
#   docker run --rm --shm-size=1g -p 127.0.0.1:8000:8000 -v "$PWD/my-model:/model:ro" -v dualground:/data dualground
#
# Further flags of --mode=serve come behind the image's name: --encoder=clip=openai/clip-vit-base-patch32
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir '/source[serve,hub]' && rm -r /source \
    && useradd --create-home grounding && install -d -o grounding /data
USER grounding
WORKDIR /data
ENV JAX_PLATFORMS=cpu HF_HOME=/data/hub XDG_CACHE_HOME=/data/cache
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Inside the container all addresses; -p above says who reaches them.
ENTRYPOINT ["dualground", "--mode=serve", "--workdir=/model", "--output=/data/served", "--host=0.0.0.0"]
